-- Extend leases: see core/rules/lapsing.py.
--
-- Reply of a command the instant until which the lease lasts.
-- Declines what is not steady, not held by the caller, or was asked for before.

local function renew_lease(call, item)
  local execution = held_execution(call, item)
  if not execution then
    return nil
  end
  local change = change_of(call, execution)
  local head = execution.head
  local lease, ttl_ms = head.lease, tonumber(item.lease_ttl_ms)
  lease.expires_at = math.max(lease.expires_at, call.now + ttl_ms)
  lease.ttl_ms, lease.last_renewed_at = ttl_ms, call.now
  head.last_mutation_at = call.now
  add_event(change, FAMILY.LEASE, 'renewed', lease_data(lease, head.attempt, 'expires_at', lease.expires_at))
  local outcome = call.outcome_head .. cmsgpack.pack(lease.expires_at)
  execution.last_request = item.asked .. packed_bytes(outcome) .. cmsgpack.pack(call.operation)
  return change, text(lease.expires_at)
end

register_native('renew_lease', renew_lease, {'allow-oom'})

-- Give executions that have never run to a worker: see core/rules/claiming.py.
--
-- Reply of a command the execution as it is written, and the record of its input.
-- Declines what is not plain, has run before, belongs to a flow, needs a capability that the worker lacks,
-- has a policy that the worker's would have to be merged into, or was asked for before; and everything if
-- the lane is not as the caller remembers it.

local function has_capabilities(call, head)
  for capability in string.gmatch(head.required, '[^' .. SEPARATOR .. ']+') do
    if not string.find(call.capabilities, SEPARATOR .. capability .. SEPARATOR, 1, true) then
      return false
    end
  end
  return true
end

local function may_be_claimed(call, item, execution)
  local head = execution.head
  return head.namespace == call.namespace
    and head.plain
    and head.phase == PHASE.RUNNABLE
    and head.continuation == CONTINUATION.FIRST
    and not head.lease
    and not head.attempt
    and not head.flow_id
    and head.lane_id == call.lane_id
    and has_capabilities(call, head)
    and not is_repeated(execution, item.asked)
end

-- What the worker offers to executions of a kind: a policy and the facts that follow from it, if anything.
local function offer_to(call, kind)
  local offers = unpacked_list(call.policies)
  for place = 1, #offers, 5 do
    if offers[place] == kind then
      return offers[place + 1], tonumber(offers[place + 2]), tonumber(offers[place + 3]), tonumber(offers[place + 4])
    end
  end
  return nil
end

-- Let the execution have the policy that the worker offers, unless it has it already. False if the rule
-- has to say what becomes of the two.
local function adopt_policy(call, execution)
  local head = execution.head
  local policy, kept_ms, attempt_timeout_ms, frames_kept = offer_to(call, head.execution_kind)
  if policy == nil then
    return true
  end
  if policy == '' then
    return false
  end
  if execution.policy == '' then
    execution.policy = policy
    head.kept_ms, head.attempt_timeout_ms, head.frames_kept = kept_ms, attempt_timeout_ms, frames_kept
  end
  return execution.policy == policy
end

local function open_attempt(call, item, head)
  local timeout_ms, timeout_at = nil, nil
  if head.attempt_timeout_ms > 0 then
    timeout_ms = head.attempt_timeout_ms
    timeout_at = math.min(call.now + timeout_ms, SAFE_INTEGER_MAX)
  end
  head.attempt = {
    attempt_id = item.attempt_id,
    attempt_index = head.attempt_count,
    attempt_type = ATTEMPT_TYPE.INITIAL,
    state = ATTEMPT.STARTED,
    started_at = call.now,
    worker_id = call.worker_id,
    worker_instance_id = call.worker_instance_id,
    timeout_ms = timeout_ms,
    timeout_at = timeout_at,
    generation = head.replay_count,
  }
  head.attempt_count = head.attempt_count + 1
end

local function grant_lease(change, item)
  local call, head = change.call, change.execution.head
  local ttl_ms = tonumber(call.lease_ttl_ms)
  head.lease_epoch = head.lease_epoch + 1
  head.lease = {
    lease_id = item.lease_id,
    epoch = head.lease_epoch,
    worker_id = call.worker_id,
    worker_instance_id = call.worker_instance_id,
    acquired_at = call.now,
    expires_at = call.now + ttl_ms,
    ttl_ms = ttl_ms,
  }
  head.phase, head.continuation = PHASE.ACTIVE, CONTINUATION.NONE
  head.started_at = head.started_at or call.now
  head.last_transition_at, head.last_mutation_at = call.now, call.now
  add_event(change, FAMILY.LEASE, 'acquired', lease_data(head.lease, head.attempt))
end

local function claim_execution(call, item)
  if not is_relied_on(call) then
    return nil
  end
  local execution, input = read_execution(item.key.execution, item.execution_id, item.key.payload)
  if not execution or not may_be_claimed(call, item, execution) then
    return nil
  end
  local change = change_of(call, execution)
  if not input or not adopt_policy(call, execution) then
    return nil
  end
  open_attempt(call, item, execution.head)
  grant_lease(change, item)
  execution.last_request = item.last_request
  return change, {packed_execution(change), input}
end

-- Also when the server's memory is full, as all work that has begun.
register_native('claim_execution', claim_execution, {'allow-oom'})

-- Admit units of work that can be claimed at once: see core/rules/creation.py.
--
-- The caller packs the record, but for the instants, which only the server knows: they are next to each
-- other, each in as many bytes as any other, so the lengths in front of the record are right already. What
-- the rows follow from comes along, and nothing is unpacked.
-- Reply of a command 'done'.
-- Declines what exists; and everything if the lane is not as the caller remembers it.

local function packed_instants(call)
  if not call.packed_instants then
    local now = call.packed_now
    call.packed_instants = packed_name('created_at') .. now .. packed_name('last_transition_at') .. now
      .. packed_name('last_mutation_at') .. now
  end
  return call.packed_instants
end

-- As much of the execution as its rows and its events follow from.
local function made_execution(call, item)
  local head = setmetatable({
    namespace = call.namespace,
    lane_id = call.lane_id,
    priority = tonumber(item.priority),
    required = item.required,
    deadline_at = tonumber(item.deadline_at),
    phase = PHASE.RUNNABLE,
    continuation = CONTINUATION.FIRST,
    created_at = call.now,
    last_transition_at = call.now,
  }, usual)
  return {key = item.key.execution, id = item.execution_id, head = head, tags = item.tags}
end

local function create_execution(call, item)
  if not is_relied_on(call) or exists(item.key.execution, item.key.payload) then
    return nil
  end
  local execution = made_execution(call, item)
  local change = new_change(call, execution, item.listed)
  change.packed = call.version .. ':' .. item.before_instants .. packed_instants(call) .. item.behind_instants
  add_record(change, item.key.payload, call.key['keys:payload'], item.payload_listed, item.payload)
  add_event(change, FAMILY.EXECUTION, 'created', item.created)
  if execution.tags ~= '' then
    add_event(change, FAMILY.TAG, 'attached', string.sub(execution.tags, #cmsgpack.pack('tags') + 1))
  end
  return change, 'done'
end

register_native('create_execution', create_execution, {})

-- Admit units of work that can be claimed at once: see core/rules/creation.py.
--
-- The caller makes the record, without the instants, which only the server knows.
-- Reply of a command 'done'.
-- Declines what exists; and everything if the lane is not as the caller remembers it.

local function create_execution(call, item)
  if not is_relied_on(call) or exists(item.key.execution) or exists(item.key.payload) then
    return nil
  end
  local execution = execution_of(item.key.execution, item.execution_id, item.execution, 1)
  local head, now = execution.head, call.now
  head.created_at, head.last_transition_at, head.last_mutation_at = now, now, now
  local change = new_change(call, execution, item.listed)
  add_record(change, item.key.payload, call.key['keys:payload'], item.payload_listed, item.payload)
  add_event(change, FAMILY.EXECUTION, 'created',
    packed_map('lane_id', head.lane_id, 'kind', head.execution_kind))
  if execution.tags ~= '' then
    add_event(change, FAMILY.TAG, 'attached', string.sub(execution.tags, #cmsgpack.pack('tags') + 1))
  end
  return change, 'done'
end

register_native('create_execution', create_execution, {})

-- End executions well that belong to no flow, and keep their results: see core/rules/finishing.py.
--
-- Reply of a command 'done'.
-- Asks to be called as complete_member, and so declines, for a member of a flow.
-- Declines what is unusual or has a quota policy, is not held by the caller, was asked for before, or was
-- replayed.

local function complete_execution(call, item)
  local execution = completed_by(call, item)
  if not execution then
    return nil
  elseif execution.head.flow_id then
    return ask_for('member')
  end
  local change = change_of(call, execution)
  complete(change, item)
  return change, 'done'
end

register_native('complete_execution', complete_execution, {'allow-oom'})

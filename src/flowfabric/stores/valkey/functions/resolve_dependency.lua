-- Deliver the news that members have ended: see core/rules/delivering.py.
--
-- Reply of a command 'done', then the scopes in which others can be claimed now.
-- Declines what is delivered already, or is about anything but a member that has ended and was not
-- cancelled; and what reaches further than the joins behind the member.

local function may_be_delivered(message, head)
  return message.about == CHANGED
    and not message.position
    and head.phase == PHASE.TERMINAL
    and head.flow_id
    and head.outcome ~= OUTCOME.CANCELLED
end

local function resolve_dependency(call, item)
  local message = current_record(call, item.key.message)
  local member = current_execution(call, item.key.execution, item.execution_id)
  if not message or not member or not may_be_delivered(message.fields, member.head) then
    return nil
  end
  local found = consequences(call, item, member.head.outcome)
  if not found then
    return nil
  end
  local change, reply = change_of(call), {'done'}
  remove_record(change, item.key.message, call.key['keys:message'], item.message_listed)
  remove_row(change, INDEX.DUE_MESSAGE, '', message.fields.due_at, item.message_id)
  carry_on(change, item, member.head, found, reply)
  return change, reply
end

register_native('resolve_dependency', resolve_dependency, {'allow-oom'})

-- End members of flows well, and keep their results: see core/rules/finishing.py.
--
-- Reply of a command 'told_flow' if its flow is owed the news; 'carried_on' if that was carried to the joins
-- behind it, then the scopes in which others can be claimed now.
-- Declines as complete_execution, and what is owed to its flow already.

-- Carry the end of a member to what is behind it, or owe it the news.
local function tell_flow(change, item, found)
  if not found then
    owe_news(change, item)
    return 'told_flow'
  end
  local reply = {'carried_on'}
  carry_on(change, item, change.execution.head, found, reply)
  return reply
end

local function complete_member(call, item)
  local execution = completed_by(call, item)
  if not execution or not execution.head.flow_id or exists(item.key.message) then
    return nil
  end
  local found = item.node_version ~= '' and consequences(call, item, OUTCOME.SUCCESS)
  local change = change_of(call, execution)
  complete(change, item)
  return change, tell_flow(change, item, found)
end

register_native('complete_member', complete_member, {'allow-oom'})

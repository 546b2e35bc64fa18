-- End executions well and keep their results: see core/rules/finishing.py.
--
-- Reply of a command 'told_flow' if its flow is owed the news; 'carried_on' if that was carried to the joins
-- behind it, then the scopes in which others can be claimed now; else 'done'.
-- Declines what is unusual or has a quota policy, is not held by the caller, was asked for before, or was
-- replayed.

-- Carry the end of a member to what is behind it, or owe it the news.
local function tell_flow(change, item, head, found)
  if not found then
    owe_news(change, item)
    return 'told_flow'
  end
  local reply = {'carried_on'}
  carry_on(change, item, head, found, reply)
  return reply
end

local function complete_execution(call, item)
  local execution, result = held_execution(call, item, item.key.result)
  if not execution or not is_ordinary_run(execution.head) or execution.head.replay_count > 0 then
    return nil
  end
  if result or execution.head.flow_id and exists(item.key.message) then
    return nil
  end
  local change, head = change_of(call, execution), execution.head
  local found = head.flow_id and item.node_version ~= '' and consequences(call, item, OUTCOME.SUCCESS)
  end_execution(change, OUTCOME.SUCCESS, call.release_reason)
  if item.result ~= '' then
    head.has_result = true
    add_record(change, item.key.result, call.key['keys:result'], item.result_listed, item.result)
  end
  execution.released, execution.last_request = item.released, item.last_request
  return change, head.flow_id and tell_flow(change, item, head, found) or 'done'
end

register_native('complete_execution', complete_execution, {'allow-oom'})

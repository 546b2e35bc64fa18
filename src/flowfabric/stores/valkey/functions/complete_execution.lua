-- End executions well and keep their results: see core/rules/finishing.py.
--
-- Reply of a command 'told_flow' if its flow is owed the news, else 'done'.
-- Declines what is unusual or has a quota policy, is not held by the caller, was asked for before, or was
-- replayed.

local function complete_execution(call, item)
  local execution, result = held_execution(call, item, item.key.result)
  if not execution or not is_ordinary_run(execution.head) or execution.head.replay_count > 0 then
    return nil
  end
  if result or execution.head.flow_id and exists(item.key.message) then
    return nil
  end
  local change = change_of(call, execution)
  end_execution(change, item, OUTCOME.SUCCESS, call.release_reason)
  if item.result ~= '' then
    execution.head.has_result = true
    add_record(change, item.key.result, call.key['keys:result'], item.result_listed, item.result)
  end
  execution.released, execution.last_request = item.released, item.last_request
  return change, execution.head.flow_id and 'told_flow' or 'done'
end

register_native('complete_execution', complete_execution, {'allow-oom'})

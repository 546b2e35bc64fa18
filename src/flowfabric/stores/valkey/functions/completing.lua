-- Steps of the functions that end executions well and keep their results: see core/rules/finishing.py.

-- The execution that a command completes; nothing if the rule has to say what becomes of it.
local function completed_by(call, item)
  local execution, result = held_execution(call, item, item.key.result)
  if not execution or result or not is_ordinary_run(execution.head) or execution.head.replay_count > 0 then
    return nil
  end
  return execution
end

local function complete(change, item)
  local call, execution = change.call, change.execution
  end_execution(change, OUTCOME.SUCCESS, call.release_reason)
  if item.result ~= '' then
    execution.head.has_result = true
    add_record(change, item.key.result, call.key['keys:result'], item.result_listed, item.result)
  end
  execution.released, execution.last_request = item.released, item.last_request
end

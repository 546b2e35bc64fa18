-- End attempts with a failure, and the execution too unless it has another attempt left: see
-- core/rules/finishing.py.
--
-- Reply of a command its outcome, then 'told_flow' if its flow is owed the news or '', then the scope in
-- which it can be claimed again at once or ''.
-- Declines what is unusual or has a quota policy, is not held by the caller, or was asked for before; and
-- members that were replayed.

-- The retry policy on record; the caller's only where there is none.
local function retry_policy_of(execution, item)
  local policy = policy_of(execution)
  if policy and policy.retry_policy then
    return policy.retry_policy
  end
  return item.retry_policy ~= '' and cmsgpack.unpack(item.retry_policy) or nil
end

local function may_retry(policy, category, retry_count)
  if not policy or NEVER_RETRIED[category] or retry_count >= policy.max_retries then
    return false
  end
  for _, retryable in ipairs(policy.retryable_categories) do
    if retryable == category then
      return true
    end
  end
  return #policy.retryable_categories == 0
end

-- The nearest whole number; of two that are as near, the even one.
local function rounded(number)
  local whole = math.floor(number)
  local rest = number - whole
  if rest > 0.5 or rest == 0.5 and whole % 2 == 1 then
    return whole + 1
  end
  return whole
end

-- The wait without jitter, computed so that no retry count can overflow.
local function exponential_ms(backoff, retry_count)
  if backoff.initial_delay_ms == 0 then
    return 0
  end
  local ratio = math.max(backoff.max_delay_ms / backoff.initial_delay_ms, 1)
  if retry_count * math.log(backoff.multiplier) >= math.log(ratio) then
    return backoff.max_delay_ms
  end
  return backoff.initial_delay_ms * backoff.multiplier ^ retry_count
end

local function retry_delay_ms(backoff, retry_count, random)
  if backoff.delay_ms then
    return backoff.delay_ms
  end
  local delay = exponential_ms(backoff, retry_count)
  if backoff.jitter then
    delay = delay + random * delay
  end
  return math.max(
    math.min(rounded(delay), backoff.max_delay_ms), math.min(backoff.initial_delay_ms, backoff.max_delay_ms))
end

-- End the attempt, and wait before the next one is opened at its claim. Returns until when.
local function schedule_retry(change, item, policy, failure)
  local call, head = change.call, change.execution.head
  local delay_ms = retry_delay_ms(policy.backoff, head.retry_count, tonumber(item.random))
  local delay_until = math.min(call.now + delay_ms, SAFE_INTEGER_MAX)
  release_lease(change, call.retried)
  end_attempt(change, OUTCOME.FAILED, failure)
  head.retry_count, head.retry_reason = head.retry_count + 1, failure.reason
  head.continuation = CONTINUATION.RETRY
  make_runnable(change, delay_until, BLOCKING.WAITING_FOR_RETRY_BACKOFF)
  return delay_until
end

-- The outcome of a retry, and the scope in which the execution can be claimed, if it can be at once.
local function retry(change, item, policy, failure)
  local call, head = change.call, change.execution.head
  local delay_until = schedule_retry(change, item, policy, failure)
  local outcome = packed_map(call.tag_field, call.retry_scheduled,
    'delay_until', delay_until, 'next_attempt_index', head.attempt_count)
  return outcome, delay_until <= call.now and head.namespace .. SEPARATOR .. head.lane_id .. head.required or ''
end

local function may_fail(execution, item)
  local head = execution.head
  return is_ordinary_run(head) and not (head.flow_id and (head.replay_count > 0 or exists(item.key.message)))
end

local function fail_execution(call, item)
  local execution = held_execution(call, item)
  if not execution or not may_fail(execution, item) then
    return nil
  end
  local change, policy = change_of(call, execution), retry_policy_of(execution, item)
  local failure = {reason = unless_blank(item.failure_reason), category = unless_blank(item.failure_category)}
  local outcome, claimable, told_flow = call.terminal, '', ''
  if may_retry(policy, item.failure_category, execution.head.retry_count) then
    outcome, claimable = retry(change, item, policy, failure)
  else
    end_execution(change, OUTCOME.FAILED, call.failed, failure)
    if execution.head.flow_id then
      owe_news(change, item)
      told_flow = 'told_flow'
    end
  end
  execution.last_request = item.asked .. packed_bytes(outcome) .. cmsgpack.pack(call.operation)
  execution.released = item.released .. packed_bytes(outcome)
  return change, {outcome, told_flow, claimable}
end

register_native('fail_execution', fail_execution, {'allow-oom'})

-- Steps that functions about a lease have in common: see core/rules/fencing.py and transitions.py.

-- Whether the caller holds the lease that it names, and has not asked for the same before.
local function is_held_by(call, item, execution)
  local head = execution.head
  local lease, attempt = head.lease, head.attempt
  return head.namespace == call.namespace
    and head.steady
    and head.phase == PHASE.ACTIVE
    and lease.expires_at > call.now
    and lease.lease_id == item.lease_id
    and lease.epoch == tonumber(item.lease_epoch)
    and attempt.attempt_id == item.attempt_id
    and attempt.attempt_index == tonumber(item.attempt_index)
    and not is_repeated(execution, item.asked)
end

-- The execution whose lease the caller holds, and another record as it is stored, if one is named; nothing
-- if there is anything else to say about the execution.
local function held_execution(call, item, other_key)
  local execution, other = read_execution(item.key.execution, item.execution_id, other_key)
  if execution and is_held_by(call, item, execution) then
    return execution, other
  end
  return nil
end

local function lease_data(lease, attempt, ...)
  local count = select('#', ...)
  return string.char(0x86 + count / 2)
    .. PAIR.lease_id .. text_head(lease.lease_id) .. lease.lease_id
    .. PAIR.lease_epoch .. cmsgpack.pack(lease.epoch)
    .. PAIR.attempt_id .. text_head(attempt.attempt_id) .. attempt.attempt_id
    .. PAIR.attempt_index .. cmsgpack.pack(attempt.attempt_index)
    .. PAIR.worker_id .. text_head(lease.worker_id) .. lease.worker_id
    .. PAIR.worker_instance_id .. text_head(lease.worker_instance_id) .. lease.worker_instance_id
    .. (count > 0 and cmsgpack.pack(...) or '')
end

-- Whether the head shows all that concerns the end of an execution that runs. Its budgets are no matter then.
local function is_ordinary_run(head)
  return head.plain or head.free
    and #head.blockers == 0
    and head.unresolved_dependencies == 0
    and #head.open_waitpoint_ids == 0
    and not head.suspension_id
    and not head.waitpoint_id
    and head.suspended_reason == BLOCKING.NONE
end

-- What is on record of the execution's policy; nothing if it has none.
local function policy_of(execution)
  local policy = execution.policy
  return policy ~= '' and cmsgpack.unpack(string.sub(policy, #packed_name('policy') + 1)) or nil
end

-- Let no budget have the execution among those that it may have to cancel.
local function detach_from_budgets(change)
  local execution = change.execution
  local head, policy = execution.head, not execution.head.unlimited and policy_of(execution)
  for _, budget_id in ipairs(policy and policy.budget_ids or {}) do
    remove_row(change, INDEX.ATTACHED, budget_id, head.created_at, execution.id)
  end
end

-- Take the lease back. The time used is subtracted from the timeout.
local function release_lease(change, reason)
  local head = change.execution.head
  local lease, attempt = head.lease, head.attempt
  head.lease = nil
  if attempt.timeout_at then
    attempt.timeout_ms, attempt.timeout_at = math.max(0, attempt.timeout_at - change.call.now), nil
  end
  add_event(change, FAMILY.LEASE, 'released', lease_data(lease, attempt, 'reason', reason))
end

-- A text that is left out where it is empty.
local function unless_blank(value)
  return value ~= '' and value or nil
end

-- End the attempt. A failure has a reason and a category.
local function end_attempt(change, outcome, failure)
  local attempt, now = change.execution.head.attempt, change.call.now
  attempt.state = ENDED_ATTEMPT[outcome]
  attempt.ended_at, attempt.stream_closed_at = now, now
  attempt.stream_closed_reason = ENDED_STREAM[outcome]
  attempt.failure_reason, attempt.failure_category = failure.reason, failure.category
end

-- Let the execution wait for a worker, from an instant on.
local function make_runnable(change, from_ms, reason)
  local head, now = change.execution.head, change.call.now
  head.phase = PHASE.RUNNABLE
  if from_ms > now then
    head.plain, head.only_blocked = false, head.plain
    head.blockers = {{
      kind = BLOCKER.TIME, reason = reason, detail = 'delayed until ' .. text(from_ms), until_ms = from_ms}}
  end
  head.last_transition_at, head.last_mutation_at = now, now
end

local NO_FAILURE = {}

-- End the execution. Its flow, if it has one, is not told yet. A failure has a reason and a category.
local function end_execution(change, outcome, release_reason, failure)
  failure = failure or NO_FAILURE
  local execution, now = change.execution, change.call.now
  local head = execution.head
  release_lease(change, release_reason)
  end_attempt(change, outcome, failure)
  detach_from_budgets(change)
  head.continuation = CONTINUATION.NONE
  head.phase, head.outcome = PHASE.TERMINAL, outcome
  head.failure_reason, head.failure_category = failure.reason, failure.category
  head.completed_at, head.retention_from = now, now
  head.last_transition_at, head.last_mutation_at = now, now
  add_event(change, FAMILY.COMPLETION, outcome, packed_map('generation', head.replay_count,
    'failure_reason', failure.reason, 'failure_category', failure.category))
end

-- Owe the flow of a member that has ended the news.
local function owe_news(change, item)
  local call = change.call
  add_record(change, item.key.message, call.key['keys:message'], item.message_listed,
    item.message .. cmsgpack.pack(call.now))
  add_row(change, INDEX.DUE_MESSAGE, '', call.now, item.message_id)
end

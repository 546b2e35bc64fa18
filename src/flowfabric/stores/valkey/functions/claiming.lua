-- Steps of the functions that give executions to workers: see core/rules/claiming.py.

local claim

-- A block, since the library has no more than 200 local names.
do
  local function has_capabilities(call, head)
    if head.required == SEPARATOR then
      return true
    end
    for capability in string.gmatch(head.required, '[^' .. SEPARATOR .. ']+') do
      if not string.find(call.capabilities, SEPARATOR .. capability .. SEPARATOR, 1, true) then
        return false
      end
    end
    return true
  end

  local function may_be_claimed(call, item, execution)
    local head = execution.head
    return head.namespace == call.namespace
      and head.plain
      and head.phase == PHASE.RUNNABLE
      and not (head.continuation == CONTINUATION.RESUME and head.resumed_suspension_id)
      and head.lane_id == call.lane_id
      and has_capabilities(call, head)
      and not is_repeated(execution, item.asked)
  end

  -- What the worker offers to executions of a kind: a policy and the facts that follow from it, if anything.
  local function offer_to(call, kind)
    call.offers = call.offers or unpacked_list(call.policies)
    local offers = call.offers
    for place = 1, #offers, 5 do
      if offers[place] == kind then
        return offers[place + 1], tonumber(offers[place + 2]), tonumber(offers[place + 3]), tonumber(offers[place + 4])
      end
    end
    return nil
  end

  -- Let the execution have the policy that the worker offers, unless it has it already. False if the rule
  -- has to say what becomes of the two, or how much of it was used before.
  local function adopt_policy(call, execution)
    local head = execution.head
    local policy, kept_ms, attempt_timeout_ms, frames_kept = offer_to(call, head.execution_kind)
    if policy == nil then
      return true
    end
    if policy == '' then
      return false
    end
    if execution.policy == '' and head.continuation == CONTINUATION.FIRST then
      execution.policy = policy
      head.kept_ms, head.attempt_timeout_ms, head.frames_kept = kept_ms, attempt_timeout_ms, frames_kept
    end
    return execution.policy == policy
  end

  local NOTHING_RELATED = ' '

  -- What else the rule looks at or writes: the attempt that another one is to follow, and the flow.
  local function related_to(head)
    local past = head.attempt and head.continuation ~= CONTINUATION.RESUME
    if not past and not head.flow_id then
      return NOTHING_RELATED
    end
    return (past and text(head.attempt.attempt_index) or '') .. ' ' .. (head.flow_id or '')
  end

  -- Whether the flow lets its members run. A flow that was cancelled is left to the rule, which knows whom it
  -- spares.
  local function is_let_run(call, item)
    local flow = current_record(call, item.key.flow)
    return not flow or not flow.fields.cancelled_at
  end

  local function keep_past_attempt(change, item)
    add_record(change, item.key.past_attempt, change.call.key['keys:attempt'], item.past_attempt_listed,
      packed_map('execution_id', item.execution_id, 'attempt', change.execution.head.attempt))
  end

  local function open_attempt(change, item)
    local call, head = change.call, change.execution.head
    local previous = head.attempt
    if previous then
      keep_past_attempt(change, item)
    end
    head.attempt = {
      attempt_id = item.attempt_id,
      attempt_index = head.attempt_count,
      attempt_type = ATTEMPT_TYPE_OF[head.continuation],
      state = ATTEMPT.STARTED,
      started_at = call.now,
      worker_id = call.worker_id,
      worker_instance_id = call.worker_instance_id,
      previous_attempt_index = previous and previous.attempt_index,
      cause = unless_blank(head.retry_reason),
      timeout_ms = head.attempt_timeout_ms > 0 and head.attempt_timeout_ms or nil,
      generation = head.replay_count > 0 and head.replay_count or nil,
    }
    head.attempt_count, head.retry_reason = head.attempt_count + 1, nil
  end

  -- Go on with the attempt that was put aside. There is nothing that it waited for.
  local function resume_attempt(change)
    local call, attempt = change.call, change.execution.head.attempt
    attempt.state, attempt.resumed_at = ATTEMPT.STARTED, call.now
    attempt.suspended_at, attempt.suspension_id = nil, nil
    attempt.worker_id, attempt.worker_instance_id = call.worker_id, call.worker_instance_id
  end

  local function grant_lease(change, item, ...)
    local call, head = change.call, change.execution.head
    local ttl_ms, timeout_ms = tonumber(call.lease_ttl_ms), head.attempt.timeout_ms
    head.lease_epoch = head.lease_epoch + 1
    head.lease = {
      lease_id = item.lease_id,
      epoch = head.lease_epoch,
      worker_id = call.worker_id,
      worker_instance_id = call.worker_instance_id,
      acquired_at = call.now,
      expires_at = call.now + ttl_ms,
      ttl_ms = ttl_ms,
    }
    head.attempt.timeout_at = timeout_ms and math.min(call.now + timeout_ms, SAFE_INTEGER_MAX)
    head.phase, head.continuation = PHASE.ACTIVE, CONTINUATION.NONE
    head.started_at = head.started_at or call.now
    head.last_transition_at, head.last_mutation_at = call.now, call.now
    add_event(change, FAMILY.LEASE, 'acquired', lease_data(head.lease, head.attempt, ...))
  end

  local function give_to_worker(change, item)
    local call, execution = change.call, change.execution
    if execution.head.continuation == CONTINUATION.RESUME then
      resume_attempt(change)
      grant_lease(change, item, 'reason', 'claim_resumed')
      execution.last_request = item.asked .. packed_bytes(call.resumed) .. cmsgpack.pack(call.operation)
    else
      open_attempt(change, item)
      grant_lease(change, item)
      execution.last_request = item.last_request
    end
  end

  local NODE_BYTES_MAX = 4096

  -- The record of a member's edges, '' if it has none; nothing if it is too long to be sent along.
  local function edges_of(item)
    local node = server.call('GET', item.key.node) or ''
    return #node <= NODE_BYTES_MAX and node or nil
  end

  function claim(call, item)
    if not is_relied_on(call) then
      return nil
    end
    local execution, input = read_execution(item.key.execution, item.execution_id, item.key.payload)
    if not execution or not input or not may_be_claimed(call, item, execution) then
      return nil
    end
    local related = related_to(execution.head)
    if related ~= (item.related or NOTHING_RELATED) then
      return ask_for(related)
    end
    if execution.head.flow_id and not is_let_run(call, item) then
      return nil
    end
    local change = change_of(call, execution)
    if not adopt_policy(call, execution) then
      return nil
    end
    give_to_worker(change, item)
    return change, {packed_execution(change), input, execution.head.flow_id and edges_of(item) or nil}
  end
end

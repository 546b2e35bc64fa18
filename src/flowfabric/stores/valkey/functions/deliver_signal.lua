-- Receive signals that a suspension waits for, one after the other: see core/rules/signalling.py.
--
-- The caller has verified the token for the waitpoint as it was before the call, under a key of the key ring
-- on which all commands rest. What the waitpoint keeps of its token is compared once more.
-- The number of a signal is in the name of its key, and only the server knows it. So the caller declares the
-- keys of some numbers behind the last one that it has seen.
-- Reply of a command the effect, then until when the resumed execution is delayed.
-- Declines what is not suspended, or kept from running by more than that; a condition of several nodes; a
-- waitpoint that may outlive its suspension; what was received or asked for before; what is above a cap, or
-- behind the declared numbers; and a signal that would end a wait on several waitpoints. And everything if
-- the key ring is not as the caller remembers it.

local function is_token_valid(call, item, waitpoint)
  return waitpoint.token_kid == item.token_kid
    and waitpoint.token_digest == item.token_digest
    and (item.token_until == '' or call.now < tonumber(item.token_until))
end

local function has_room(call, item, head)
  local cap, sequence = tonumber(item.signal_cap), head.signal_count + 1
  local first = tonumber(call.first_sequence)
  return (cap == 0 or sequence <= cap)
    and sequence >= first
    and sequence < first + tonumber(call.count) * SIGNAL_KEYS
end

local function may_be_signalled(call, item, execution)
  local head = execution.head
  return head.namespace == call.namespace
    and head.free
    and #head.blockers == 0
    and head.unresolved_dependencies == 0
    and head.phase == PHASE.SUSPENDED
    and head.suspension_id == item.suspension_id
    and has_room(call, item, head)
    and not is_repeated(execution, item.asked)
end

local function takes_signals(call, item, waitpoint)
  return waitpoint.state == WAITPOINT.ACTIVE
    and waitpoint.suspension_id == item.suspension_id
    and not waitpoint.buffered
    and is_token_valid(call, item, waitpoint)
end

-- The node of a condition that has no other. A single one needs one signal and has no more to tell than that.
local function only_node(condition)
  if condition.type == CONDITION.SINGLE then
    return {is_single = true, n = 1, matcher = condition.matcher, waitpoints = {condition.waitpoint_key}}
  elseif condition.type == CONDITION.COMPOSITE and condition.body.kind == CONDITION.COUNT then
    return condition.body
  end
  return nil
end

local function set_of(values)
  local set = {}
  for _, value in ipairs(values) do
    set[value] = true
  end
  return set
end

-- What a suspension waits for, what has satisfied it so far, and what happens then; nothing where the rule
-- has to decide. It is found out once for all commands of the call.
local function wait_of(suspension)
  if suspension.wait == nil then
    local node = only_node(cmsgpack.unpack(unpacked_bytes(suspension.bytes.condition)))
    local policy = cmsgpack.unpack(unpacked_bytes(suspension.bytes.policy))
    local satisfiers = (suspension.fields.satisfiers or {})[''] or {}
    suspension.wait = node and policy.close_waitpoint_on_resume and {
      node = node, waitpoints = set_of(node.waitpoints),
      satisfiers = satisfiers, satisfied = set_of(satisfiers), resume_delay_ms = policy.resume_delay_ms or 0,
    } or false
  end
  return suspension.wait
end

local function counted(node, item)
  if node.is_single or node.count_kind == COUNT_KIND.DISTINCT_SIGNALS then
    return item.signal_id
  elseif node.count_kind == COUNT_KIND.DISTINCT_WAITPOINTS then
    return item.waitpoint_id
  end
  return item.source_type .. SOURCE_SEPARATOR .. item.source_identity
end

-- The effect of a signal, and what it adds to what has satisfied the node so far. Nothing if the node does
-- not name the waitpoint, or is met already.
local function evaluate(wait, item, waitpoint)
  local node, satisfier = wait.node, counted(wait.node, item)
  local matcher = node.matcher
  if not wait.waitpoints[waitpoint.waitpoint_key] or #wait.satisfiers >= node.n then
    return nil
  elseif matcher and matcher.type == CONDITION.BY_NAME and matcher.name ~= item.signal_name then
    return node.is_single and EFFECT.NO_OP or EFFECT.SIGNAL_IGNORED_MATCHER_FAILED
  elseif wait.satisfied[satisfier] then
    return EFFECT.APPENDED_TO_WAITPOINT_DUPLICATE
  elseif #wait.satisfiers + 1 >= node.n then
    return EFFECT.RESUME_CONDITION_SATISFIED, satisfier
  end
  return EFFECT.APPENDED_TO_WAITPOINT, satisfier
end

-- Note at the suspension and the waitpoint that the signal counts.
local function count_signal(wait, suspension, waitpoint, sequence, satisfier)
  wait.satisfiers[#wait.satisfiers + 1], wait.satisfied[satisfier] = satisfier, true
  suspension.satisfiers = {[''] = wait.satisfiers}
  suspension.satisfier_signals = suspension.satisfier_signals or {}
  suspension.satisfier_signals[#suspension.satisfier_signals + 1] = sequence
  waitpoint.matched_signal_count = (waitpoint.matched_signal_count or 0) + 1
end

-- Put the signal on record, and tell about it.
local function record_signal(change, item, sequence, effect)
  local call, number = change.call, text(sequence)
  local count, known = pairs_of(item.signal)
  add_record(change, item.signals .. number, call.key['keys:signal'],
    call.signal_listed_head .. number .. call.signal_listed_tail,
    struct.pack('>BI2', MAP_16, count + 3) .. known
      .. packed_name('sequence') .. cmsgpack.pack(sequence)
      .. packed_name('accepted_at') .. call.packed_now
      .. packed_name('effect') .. packed_name(effect))
  add_event(change, FAMILY.SIGNAL, 'delivered', packed_map(
    'signal_id', item.signal_id, 'signal_name', item.signal_name, 'waitpoint_id', item.waitpoint_id,
    'source_identity', item.source_identity, 'sequence', sequence, 'effect', effect))
end

-- Remember that the signal was received: by its id for ever, by its sender's key for some time.
local function remember_received(change, item)
  local listing = change.call.key['keys:dedup']
  add_record(change, item.key.by_id, listing, item.by_id_listed, item.by_id)
  add_row(change, INDEX.DUE_DEDUP, '', FOREVER, item.by_id_id)
  if item.by_key ~= '' then
    local expires_at = math.min(change.call.now + tonumber(item.by_key_ms), SAFE_INTEGER_MAX)
    add_record(change, item.key.by_key, listing, item.by_key_listed, item.by_key .. cmsgpack.pack(expires_at))
    add_row(change, INDEX.DUE_DEDUP, '', expires_at, item.by_key_id)
  end
end

-- Close a suspension and its waitpoint.
local function close_suspension(change, item, suspension, waitpoint)
  local call, now = change.call, change.call.now
  suspension.satisfied_at, suspension.closed_at = now, now
  suspension.close_reason, suspension.closer_signal_id = call.resumed, item.signal_id
  waitpoint.satisfied_at, waitpoint.closed_at = now, now
  waitpoint.state, waitpoint.close_reason = WAITPOINT.CLOSED, call.resumed
  local lane, id = suspension.namespace .. SEPARATOR .. suspension.lane_id, suspension.execution_id
  remove_row(change, INDEX.SUSPENDED, lane, suspension.timeout_at or FOREVER, id)
  if suspension.timeout_at then
    remove_row(change, INDEX.DUE_SUSPENSION, '', suspension.timeout_at, id)
  end
end

-- Let the execution wait for a worker, who continues its attempt. Returns from when on.
local function resume_execution(change, item, wait)
  local head, call, left = change.execution.head, change.call, {}
  for _, waitpoint_id in ipairs(head.open_waitpoint_ids) do
    if waitpoint_id ~= item.waitpoint_id then
      left[#left + 1] = waitpoint_id
    end
  end
  head.open_waitpoint_ids = #left > 0 and left or nil
  head.suspension_id, head.waitpoint_id, head.suspended_reason = nil, nil, nil
  head.resumed_suspension_id = item.suspension_id
  local is_plain = #left == 0 and head.unlimited
  head.plain, head.only_blocked = is_plain, false
  local from_ms = math.min(call.now + (tonumber(item.resume_delay_ms) or wait.resume_delay_ms), SAFE_INTEGER_MAX)
  make_runnable(change, from_ms, BLOCKING.WAITING_FOR_RESUME_DELAY)
  head.only_blocked = head.only_blocked and is_plain
  add_event(change, FAMILY.EXECUTION, 'resumed', packed_map(
    'suspension_id', item.suspension_id, 'reason', call.resumed, 'cause', call.cause))
  return from_ms
end

local function deliver_signal(call, item)
  local execution = is_relied_on(call) and current_execution(call, item.key.execution, item.execution_id)
  if not execution or not may_be_signalled(call, item, execution) then
    return nil
  end
  if exists(item.key.by_id, item.key.by_key) then
    return nil
  end
  local waitpoint = current_record(call, item.key.waitpoint).fields
  local suspension_record = current_record(call, item.key.suspension)
  local suspension, wait = suspension_record.fields, wait_of(suspension_record)
  if not wait or not takes_signals(call, item, waitpoint) then
    return nil
  end
  local effect, satisfier = evaluate(wait, item, waitpoint)
  local resumes = effect == EFFECT.RESUME_CONDITION_SATISFIED
  if not effect or resumes and #suspension.waitpoint_ids > 1 then
    return nil
  end
  local change, head, from_ms = change_of(call, execution), execution.head, call.now
  edit_execution(change, execution)
  head.signal_count, head.last_mutation_at = head.signal_count + 1, call.now
  waitpoint.signal_count, waitpoint.last_signal_at = (waitpoint.signal_count or 0) + 1, call.now
  suspension.last_signal_at = call.now
  if satisfier then
    count_signal(wait, suspension, waitpoint, head.signal_count, satisfier)
  end
  record_signal(change, item, head.signal_count, effect)
  remember_received(change, item)
  if resumes then
    close_suspension(change, item, suspension, waitpoint)
    from_ms = resume_execution(change, item, wait)
  end
  edit_record(change, item.key.waitpoint)
  edit_record(change, item.key.suspension)
  local outcome = item.accepted .. packed_name(effect)
  execution.last_request = item.asked .. packed_bytes(outcome) .. cmsgpack.pack(call.operation)
  return change, {effect, text(from_ms)}
end

register_native('deliver_signal', deliver_signal, {})

-- Admit claims under quota policies, one after the other: see core/rules/quotas.py.
--
-- The caller has looked at the execution, and says which of its claims the admission is for. The ring of
-- instants lies in pieces: the caller knows the one that takes the next admission, and the one behind it.
-- Reply of a command its outcome, and the instant at which those that wait are looked after, if that has
--       changed.
-- Declines what was asked for before, what belongs in another piece, and whatever concerns an execution that
-- is not as the caller has seen it.

-- An execution in another shard was looked at right before the call.
local function is_as_seen(item)
  return item.execution_version == '' or version_of(item.key.execution) == item.execution_version
end

-- The piece of the ring that takes the next admission, and its place there, counted from 0. No piece if the
-- window has no limit; nothing at all if it is not one that the caller names, or is damaged.
local function next_in_window(call, item, quota)
  if quota.requests_max == 0 then
    return {}
  end
  local number, key, made, listed = (quota.admitted or 0) % quota.requests_max, nil, nil, nil
  local piece, place = math.floor(number / INSTANTS_PER_PIECE), number % INSTANTS_PER_PIECE
  if piece == tonumber(call.piece) then
    key, made, listed = item.key.window, call.window, call.window_listed
  elseif piece == tonumber(call.next_piece) then
    key, made, listed = item.key.next_window, call.next_window, call.next_window_listed
  else
    return nil
  end
  local known = current_record(call, key)
  local record = known or record_of(made, 1)
  record.fields.instants = record.fields.instants or {}
  if place > #record.fields.instants then
    return nil
  end
  return {key = key, record = record, place = place, listed = not known and listed or nil}
end

-- From when on the window takes one more admission; 0 for at once. Nothing if the instant is lost.
local function window_frees_at(call, quota, window)
  if quota.requests_max == 0 or (quota.admitted or 0) < quota.requests_max then
    return 0
  end
  local admitted_at = window.record.fields.instants[window.place + 1]
  if not admitted_at then
    return nil
  end
  return admitted_at > call.now and 0 or admitted_at + quota.window_ms
end

local function is_full(quota)
  return quota.concurrent_max > 0 and (quota.active or 0) >= quota.concurrent_max
end

-- Have those looked after that are held back from now on. Returns the change, and when that is, if it is
-- sooner than it was.
local function expect_waiting(call, item, record, frees_at, outcome)
  local quota, change = record.fields, change_of(call)
  local sooner = frees_at and (not quota.waking_at or frees_at < quota.waking_at)
  if quota.waiting and not sooner then
    return UNCHANGED, ''
  end
  if sooner then
    if quota.waking_at then
      remove_row(change, INDEX.DUE_HEADROOM, '', quota.waking_at, call.quota_key)
    end
    add_row(change, INDEX.DUE_HEADROOM, '', frees_at, call.quota_key)
    quota.waking_at = frees_at
  end
  quota.waiting, quota.turn = true, (quota.turn or 0) + 1
  remember_request(record, item.asked, outcome, call.operation)
  edit_record(change, item.key.quota)
  return change, sooner and text(frees_at) or ''
end

-- Write the instant over the one that does not count any more.
local function take_place(change, window)
  local call = change.call
  if not window.key then
    return
  end
  window.record.fields.instants[window.place + 1] = call.now
  edit_record(change, window.key)
  if window.listed then
    call.records[window.key] = window.record
    list_record(change, call.key['keys:quota_window'], window.listed)
  end
end

local function keep_admission(change, item, earlier)
  local call = change.call
  local settle_at = call.now + tonumber(call.grace_ms)
  local packed = item.admission .. cmsgpack.pack(call.now, 'settle_at', settle_at)
  if not earlier then
    add_record(change, item.key.admission, call.key['keys:admission'], item.admission_listed, packed)
  else
    replace_record(change, item.key.admission, packed)
    if earlier.fields.settle_at then
      remove_row(change, INDEX.DUE_ADMISSION, '', earlier.fields.settle_at, item.admission_id)
    end
  end
  add_row(change, INDEX.DUE_ADMISSION, '', settle_at, item.admission_id)
end

local function admit(call, item, record, window, earlier)
  local quota, change = record.fields, change_of(call)
  take_place(change, window)
  keep_admission(change, item, earlier)
  quota.admitted = (quota.admitted or 0) + 1
  if not earlier then
    quota.active, quota.revision = (quota.active or 0) + 1, (quota.revision or 0) + 1
  end
  remember_request(record, item.asked, call.admitted, call.operation)
  edit_record(change, item.key.quota)
  return change
end

local function check_admission(call, item)
  local record = current_record(call, item.key.quota)
  if not record or record.fields.namespace ~= call.namespace then
    return nil
  end
  if not is_as_seen(item) or remembers(record, item.asked) then
    return nil
  end
  local quota, admission = record.fields, read_record(item.key.admission)
  if admission and admission.fields.round == tonumber(item.round) then
    return UNCHANGED, {call.already_admitted, ''}
  end
  local window = next_in_window(call, item, quota)
  local frees_at = window and window_frees_at(call, quota, window)
  if not frees_at then
    return nil
  end
  if frees_at > call.now then
    local outcome = call.rate_exceeded .. cmsgpack.pack(frees_at - call.now + tonumber(item.spread_ms))
    local change, waking_at = expect_waiting(call, item, record, frees_at, outcome)
    return change, {outcome, waking_at}
  end
  if not admission and is_full(quota) then
    local change, waking_at = expect_waiting(call, item, record, nil, call.concurrency_exceeded)
    return change, {call.concurrency_exceeded, waking_at}
  end
  return admit(call, item, record, window, admission), {call.admitted, ''}
end

register_native('check_admission_and_record', check_admission, {})

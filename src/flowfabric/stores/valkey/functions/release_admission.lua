-- Take admissions back, one after the other: see core/rules/quotas.py.
--
-- Those of one claim, as the end of its lease has it, or whichever there is.
-- Reply of a command its outcome, and the instant at which those that wait are looked after, if that has
--       changed.
-- Declines what was asked for before.

-- Have those looked after that wait. Returns when that is, if that has changed.
local function wake_waiting(change, quota)
  local call = change.call
  if not quota.waiting then
    return ''
  end
  local before = quota.waking_at
  quota.waking_at, quota.turn = call.now, (quota.turn or 0) + 1
  if before == call.now then
    return ''
  end
  if before then
    remove_row(change, INDEX.DUE_HEADROOM, '', before, call.quota_key)
  end
  add_row(change, INDEX.DUE_HEADROOM, '', call.now, call.quota_key)
  return text(call.now)
end

local function take_back(call, item, record, admission)
  local quota, change = record.fields, change_of(call)
  remove_record(change, item.key.admission, call.key['keys:admission'], item.admission_listed)
  if admission.settle_at then
    remove_row(change, INDEX.DUE_ADMISSION, '', admission.settle_at, item.admission_id)
  end
  quota.active, quota.revision = (quota.active or 0) - 1, (quota.revision or 0) + 1
  local waking_at = wake_waiting(change, quota)
  if item.asked ~= '' then
    remember_request(record, item.asked, call.released, call.operation)
  end
  edit_record(change, item.key.quota)
  return change, waking_at
end

local function release_admission(call, item)
  local record = current_record(call, item.key.quota)
  if not record or item.asked ~= '' and remembers(record, item.asked) then
    return nil
  end
  local known = current_record(call, item.key.admission)
  if not known or item.round ~= '' and known.fields.round ~= tonumber(item.round) then
    return UNCHANGED, {call.kept, ''}
  end
  local change, waking_at = take_back(call, item, record, known.fields)
  return change, {call.released, waking_at}
end

-- Also when the server's memory is full: it frees some.
register_native('release_admission', release_admission, {'allow-oom'})

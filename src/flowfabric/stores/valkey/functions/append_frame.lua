-- Write durable frames to the streams of running attempts: see core/rules/streaming.py.
--
-- Reply of a command the entry's milliseconds, its sequence, and how many frames there were.
-- Declines what is not held by the caller, or was asked for before, and a place that the stream does not take.

local function may_append(call, item, execution)
  local head = execution.head
  local lease, attempt = head.lease, head.attempt
  return head.namespace == call.namespace
    and head.phase == PHASE.ACTIVE
    and (lease.state or LEASE.HELD) == LEASE.HELD
    and lease.expires_at > call.now
    and lease.lease_id == item.lease_id
    and lease.epoch == tonumber(item.lease_epoch)
    and attempt.attempt_id == item.attempt_id
    and attempt.attempt_index == tonumber(item.attempt_index)
end

-- The place of one more frame: behind all others even if the clock is not.
local function next_place(call, stream)
  local last_ms = stream.last_ms or 0
  if call.now > last_ms then
    return call.now, 0
  end
  return last_ms, (stream.last_seq or -1) + 1
end

local function count_frame(call, item, stream, ms, sequence)
  stream.last_ms, stream.last_seq, stream.last_frame_at = ms, sequence, call.now
  stream.frame_count = (stream.frame_count or 0) + 1
  stream.total_bytes = (stream.total_bytes or 0) + tonumber(item.payload_bytes)
end

-- Count the frame among those that are kept. Returns how many of them to keep if there are too many.
local function retain(call, item, stream, head)
  local size, slack = tonumber(item.retention_maxlen), 0
  if not size then
    size = head.frames_kept
    slack = math.floor(size / STREAM_SLACK_DIVISOR)
  end
  local retained = (stream.durable_retained or 0) + 1
  if size == 0 or retained <= size + slack then
    stream.durable_retained = retained
    return nil
  end
  stream.durable_retained, stream.trimmed_at = size, call.now
  return size
end

local function is_behind_all(key, ms, sequence)
  local last = server.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  if not last then
    return true
  end
  local last_ms, last_sequence = string.match(last[1], '^(%d+)-(%d+)$')
  last_ms, last_sequence = tonumber(last_ms), tonumber(last_sequence)
  return ms > last_ms or ms == last_ms and sequence > last_sequence
end

local function new_stream(call, item)
  return {earlier = {}, bytes = {}, fields = {
    execution_id = item.execution_id, attempt_index = tonumber(item.attempt_index), created_at = call.now}}
end

local function append_frame(call, item)
  local execution = current_execution(call, item.key.execution, item.execution_id)
  if not execution or not may_append(call, item, execution) then
    return nil
  end
  local known = current_record(call, item.key.stream)
  local record = known or new_stream(call, item)
  local stream = record.fields
  local ms, sequence = next_place(call, stream)
  local is_compared = call.edited[item.key.stream]
  if remembers(record, item.asked) or not is_compared and not is_behind_all(item.key.frames, ms, sequence) then
    return nil
  end
  count_frame(call, item, stream, ms, sequence)
  local kept = retain(call, item, stream, execution.head)
  local id, change = text(ms) .. '-' .. text(sequence), change_of(call)
  local outcome = call.outcome_head .. cmsgpack.pack(id, 'frame_count', stream.frame_count) .. call.outcome_tail
  remember_request(record, item.asked, outcome, call.operation)
  edit_record(change, item.key.stream)
  if not known then
    call.records[item.key.stream] = record
    list_record(change, call.key['keys:stream'], item.stream_listed)
  end
  local told_at = item.told_at == '' and text(call.now) or item.told_at
  add_frame(change, item.key.frames, id, item.frame_head .. cmsgpack.pack(told_at) .. item.frame_tail, kept)
  return change, {text(ms), text(sequence), text(stream.frame_count)}
end

register_native('append_frame', append_frame, {})

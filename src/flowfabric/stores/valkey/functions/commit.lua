-- Apply one change if nothing it rests on has changed.
--
-- KEYS  the state, then every other key that is read or written. Arguments name keys by number.
-- ARGV  1 what the given clock reads, or '' to read the server's
--       2 by how many milliseconds the clock may lag behind the mark
--       3 the channel to tell of the commit   4 what to tell
--       then sections, each a count followed by so many entries:
--         versions   key, version                   what the change rests on; version 0: no record
--         places     key, milliseconds, number      a stream's first new frame, behind its last one
--         records    key, data                      records to write
--         removed    key                            records to remove
--         put        key, count, members            members to put into ordered sets
--         taken      key, count, members            members to take out of ordered sets, none of those
--         events     log key, execution key, namespace key, family, data
--         outbox     outbox key, family, execution id, namespace, data    events that are yet to be logged
--         frames     key, id, data
--         trims      key, how many frames to keep
-- Reply {1, mark, offset, clock, version, put out} when everything was applied, the mark as it was before
--       and the number of the last event in the outbox,
--       {0, key number, ...} when nothing was: these records have other versions now.
-- Error FFORDER a frame would not be behind the last one of its stream; nothing was applied.
--
-- Nothing is undone when a function fails half-way, so all that can be refused is refused before
-- the first write, and no call after it can fail.

local NO_RECORD = '0'

-- What shall be new mostly is, which one look at all of it tells.
local function changed_keys(keys, take)
  local versions, new, changed = {}, {}, {}
  for _ = 1, tonumber(take()) do
    local number, version = tonumber(take()), take()
    versions[number] = version
    if version == NO_RECORD then
      new[#new + 1] = keys[number]
    end
  end
  local all_are_new = count_existing(new) == 0
  for number, version in pairs(versions) do
    local is_sure = all_are_new and version == NO_RECORD
    if not is_sure and version_of(keys[number]) ~= version then
      changed[#changed + 1] = number
    end
  end
  return changed
end

local function frames_are_in_order(keys, take)
  local in_order = true
  for _ = 1, tonumber(take()) do
    local key, milliseconds, number = keys[tonumber(take())], tonumber(take()), tonumber(take())
    local last = server.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    if last then
      local last_milliseconds, last_number = string.match(last[1], '^(%d+)-(%d+)$')
      last_milliseconds, last_number = tonumber(last_milliseconds), tonumber(last_number)
      in_order = in_order and (milliseconds > last_milliseconds
        or (milliseconds == last_milliseconds and number > last_number))
    end
  end
  return in_order
end

local function write_records(keys, take, version)
  local records = {}
  for place = 1, 2 * tonumber(take()), 2 do
    records[place], records[place + 1] = keys[tonumber(take())], version .. ':' .. take()
  end
  write_together(records)
  for _ = 1, tonumber(take()) do
    server.call('DEL', keys[tonumber(take())])
  end
end

-- Members are put in before others are taken out, and no set is touched again once it may be gone: in a
-- slot that is just moving, a function may touch no key that is not there, and would end half-way.
local function change_sets(keys, take)
  for _ = 1, tonumber(take()) do
    local key, members = keys[tonumber(take())], {}
    for _ = 1, tonumber(take()) do
      members[#members + 1] = '0'
      members[#members + 1] = take()
    end
    server.call('ZADD', key, unpack(members))
  end
  for _ = 1, tonumber(take()) do
    local key, members = keys[tonumber(take())], {}
    for place = 1, tonumber(take()) do
      members[place] = take()
    end
    server.call('ZREM', key, unpack(members))
  end
end

local function log_events(keys, take, last)
  for _ = 1, tonumber(take()) do
    local log, execution = keys[tonumber(take())], keys[tonumber(take())]
    local namespace, family, data = keys[tonumber(take())], take(), take()
    last = last + 1
    log_event(log, execution, namespace, last, family, data)
  end
  return last
end

local function put_out_events(keys, take, last)
  for _ = 1, tonumber(take()) do
    local outbox, family, execution_id = keys[tonumber(take())], take(), take()
    local namespace, data = take(), take()
    last = last + 1
    put_out_event(outbox, last, family, execution_id, namespace, data)
  end
  return last
end

local function change_streams(keys, take)
  for _ = 1, tonumber(take()) do
    local key = keys[tonumber(take())]
    server.call('XADD', key, take(), 'frame', take())
  end
  for _ = 1, tonumber(take()) do
    local key = keys[tonumber(take())]
    server.call('XTRIM', key, 'MAXLEN', '=', take())
    if server.call('XLEN', key) == 0 then
      server.call('DEL', key)
    end
  end
end

local function commit(keys, arguments)
  local take = reader(arguments, 5)
  local changed = changed_keys(keys, take)
  if #changed > 0 then
    return {0, unpack(changed)}
  end
  if not frames_are_in_order(keys, take) then
    return server.error_reply('FFORDER a frame is not behind the last one of its stream')
  end
  leap_over_lost(keys[1])
  local state = server.call('HMGET', keys[1], 'mark_ms', 'clock_offset_ms', 'commits', 'events', 'put_out')
  local mark, offset = tonumber(state[1] or 0), tonumber(state[2] or 0)
  local clock = arguments[1] == '' and server_clock_ms() or tonumber(arguments[1])
  local version = text(tonumber(state[3] or 0) + 1)
  write_records(keys, take, version)
  change_sets(keys, take)
  local last = log_events(keys, take, tonumber(state[4] or 0))
  local put_out = put_out_events(keys, take, tonumber(state[5] or 0))
  change_streams(keys, take)
  server.call('HSET', keys[1], 'commits', version, 'events', text(last), 'put_out', text(put_out),
    'mark_ms', text(mark_after(mark, clock + offset, tonumber(arguments[2]))))
  server.call('PUBLISH', arguments[3], arguments[4])
  return {1, text(mark), text(offset), text(clock), version, text(put_out)}
end

register('commit', commit, {})
-- The same when the server's memory is full, for what ends work and so frees memory.
register('commit_when_full', commit, {'allow-oom'})

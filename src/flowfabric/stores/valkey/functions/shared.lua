-- What the functions have in common.
--
-- Payloads are opaque bytes here. The only numbers are instants, places in the log and versions,
-- all below 2^53, up to which Lua counts without loss; `text` writes them without an exponent.

local function text(number)
  return string.format('%.0f', number)
end

local function server_clock_ms()
  local time = server.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- By how much every counter leaps when writes may have been lost: more than can have been.
local LEAP = 16777216
-- How long a server is believed to be what it was, in milliseconds. To be replaced, and to come back
-- without what was written meanwhile, takes it longer.
local HISTORY_MS = 200

local history, was_promoted, history_read_ms = nil, false, 0

-- The name of the line of writes that this server continues: another one after every failover and
-- restart, so whenever it may lack writes that were acknowledged. And whether it was a replica once.
local function current_history()
  local now = server_clock_ms()
  if not history or math.abs(now - history_read_ms) >= HISTORY_MS then
    local told = server.call('INFO', 'replication')
    history = string.match(told, 'master_replid:(%w+)')
    was_promoted = string.match(told, 'master_replid2:0+%s') == nil
    history_read_ms = now
  end
  return history, was_promoted
end

-- Let the counters of a shard leap if this server may have lost writes, before they are read to be
-- counted on. Numbers that were lost here may be known elsewhere, as versions of records, as places
-- in the log, as what was taken from the outbox, and must not come to stand for something else.
local function leap_over_lost(state)
  local current, promoted = current_history()
  local known = server.call('HGET', state, 'history')
  if known == current then
    return
  end
  -- Without a history nothing was counted here yet, unless all of it was lost. Then there is nothing
  -- to leap from, and the clock is ahead of whatever was counted before, at less than one a microsecond.
  local leap = known and LEAP or (promoted and server_clock_ms() * 1000)
  if leap then
    for _, counter in ipairs({'commits', 'events', 'put_out'}) do
      server.call('HINCRBY', state, counter, text(leap))
    end
  end
  server.call('HSET', state, 'history', current)
end

-- The version that a stored record begins with; '0' if there is no record.
local function version_of(key)
  local head = server.call('GETRANGE', key, 0, 20)
  return head == '' and '0' or string.match(head, '^(%d+):')
end

-- How many values go into one call of a command. Lua hands on a few thousand at most.
local VALUES_MAX = 1000

-- Call a command about a key, with however many values there are.
local function call_with(command, key, values)
  for first = 1, #values, VALUES_MAX do
    server.call(command, key, unpack(values, first, math.min(first + VALUES_MAX - 1, #values)))
  end
end

-- Write records: their keys, each with its record behind it.
local function write_together(records)
  for first = 1, #records, VALUES_MAX do
    server.call('MSET', unpack(records, first, math.min(first + VALUES_MAX - 1, #records)))
  end
end

-- How many of these keys there are.
local function count_existing(keys)
  local found = 0
  for first = 1, #keys, VALUES_MAX do
    found = found + server.call('EXISTS', unpack(keys, first, math.min(first + VALUES_MAX - 1, #keys)))
  end
  return found
end

-- Hands out the values of a list one after another.
local function reader(values, first)
  local place = first - 1
  return function()
    place = place + 1
    return values[place]
  end
end

-- Add an event to the log of its family, and its place to those of its execution and its namespace.
local function log_event(log, execution, namespace, place, family, data)
  local told = text(place) .. ' ' .. family
  server.call('XADD', log, text(place) .. '-0', 'event', data)
  server.call('ZADD', execution, text(place), told)
  server.call('ZADD', namespace, text(place), told)
end

-- The mark never goes back, unless the clock is so far behind it that a spike must have set it.
local function mark_after(mark, clock, lag_max)
  if clock < mark and mark - clock <= lag_max then
    return mark
  end
  return clock
end

-- Add an event to the outbox, from which it is carried to the log of another shard.
local function put_out_event(outbox, place, family, execution_id, namespace, data)
  server.call('XADD', outbox, text(place) .. '-0',
    'family', family, 'execution_id', execution_id, 'namespace', namespace, 'event', data)
end

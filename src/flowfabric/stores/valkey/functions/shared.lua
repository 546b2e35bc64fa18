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

-- The version that a stored record begins with; '0' if there is no record.
local function version_of(key)
  local head = server.call('GETRANGE', key, 0, 20)
  return head == '' and '0' or string.match(head, '^(%d+):')
end

-- Hands out the values of a list one after another.
local function reader(values, first)
  local place = first - 1
  return function()
    place = place + 1
    return values[place]
  end
end

-- Add an event to the log of its family, and its place to those of its execution.
local function log_event(log, execution, namespace, place, family, data)
  local told = text(place) .. ' ' .. family
  server.call('XADD', log, text(place) .. '-0', 'event', data)
  server.call('ZADD', execution, text(place), told)
  server.call('ZADD', namespace, text(place), told)
end

-- Remove the beginning of the log.
--
-- A set that tells of events has one member for each: its place, a blank, and its family.

-- Remove from a set the members up to a place; of some families only, or of all but some.
local function untell(key, upto, families, only)
  if not only and next(families) == nil then
    server.call('ZREMRANGEBYSCORE', key, '-inf', text(upto))
    return
  end
  for _, member in ipairs(server.call('ZRANGE', key, '-inf', text(upto), 'BYSCORE')) do
    local family = string.sub(member, string.find(member, ' ', 1, true) + 1)
    if (families[family] == true) == only then
      server.call('ZREM', key, member)
    end
  end
end

local function trim_log(key, upto)
  server.call('XTRIM', key, 'MINID', '=', text(upto + 1) .. '-0')
  if server.call('XLEN', key) == 0 then
    server.call('DEL', key)
  end
end

-- KEYS  the state, the logs of the families that are trimmed, then every set that tells of an event that goes
-- ARGV  1 the place up to which events go   2 how many logs there are   3… the families that are spared
-- Reply the place up to which the log is trimmed now.
local function trim_events(keys, arguments)
  local state = server.call('HMGET', keys[1], 'events', 'trimmed')
  local trimmed = tonumber(state[2] or 0)
  local upto = math.min(tonumber(arguments[1]), tonumber(state[1] or 0))
  if upto <= trimmed then
    return text(trimmed)
  end
  local logs = tonumber(arguments[2])
  local spared = {}
  for place = 3, #arguments do
    spared[arguments[place]] = true
  end
  for place = 2, logs + 1 do
    trim_log(keys[place], upto)
  end
  for place = logs + 2, #keys do
    untell(keys[place], upto, spared, false)
  end
  server.call('HSET', keys[1], 'trimmed', text(upto))
  return text(upto)
end

-- Remove the events of one family that trimming has spared.
--
-- KEYS  the log of the family, then every set that tells of an event that goes
-- ARGV  1 the place up to which events go   2 the family
-- Reply that place.
local function forget_events(keys, arguments)
  local upto = tonumber(arguments[1])
  trim_log(keys[1], upto)
  for place = 2, #keys do
    untell(keys[place], upto, {[arguments[2]] = true}, true)
  end
  return text(upto)
end

-- Also when the server's memory is full, because they free memory.
register('trim_events', trim_events, {'allow-oom'})
register('forget_events', forget_events, {'allow-oom'})

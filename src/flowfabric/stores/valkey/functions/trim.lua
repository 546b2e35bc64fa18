-- Remove the beginning of the log.
--
-- KEYS  the state, the logs of all families, then every set that tells of an event that goes
-- ARGV  1 the place up to which events go   2 how many logs there are
-- Reply the place up to which the log is trimmed now.

local function trim_events(keys, arguments)
  local state = server.call('HMGET', keys[1], 'events', 'trimmed')
  local trimmed = tonumber(state[2] or 0)
  local upto = math.min(tonumber(arguments[1]), tonumber(state[1] or 0))
  if upto <= trimmed then
    return text(trimmed)
  end
  local logs = tonumber(arguments[2])
  for place = 2, logs + 1 do
    server.call('XTRIM', keys[place], 'MINID', '=', text(upto + 1) .. '-0')
    if server.call('XLEN', keys[place]) == 0 then
      server.call('DEL', keys[place])
    end
  end
  for place = logs + 2, #keys do
    server.call('ZREMRANGEBYSCORE', keys[place], '-inf', text(upto))
  end
  server.call('HSET', keys[1], 'trimmed', text(upto))
  return text(upto)
end

-- Also when the server's memory is full, because it frees memory.
register('trim_events', trim_events, {'allow-oom'})

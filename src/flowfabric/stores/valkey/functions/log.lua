-- Put events that another shard has put out into the log, each of them once.
--
-- KEYS  the home shard's state, then logs and the places that are kept for executions
-- ARGV  1 the shard that has put them out   2 the channel to tell of them   3 what to tell
--       4 how many there are, then for each: its number, log key, execution key,
--       namespace key, family, data
-- Reply the number of the last event that is in the log now.
--
-- The events come from the beginning of the outbox, so there are no gaps between them and what was
-- taken before. Whoever finds them there may send them, several at the same time too: what was taken
-- is known by its number.

local function log(keys, arguments)
  local take = reader(arguments, 5)
  local taken_field = 'taken:' .. arguments[1]
  leap_over_lost(keys[1])
  local state = server.call('HMGET', keys[1], 'events', taken_field)
  local last, taken = tonumber(state[1] or 0), tonumber(state[2] or 0)
  for _ = 1, tonumber(arguments[4]) do
    local number, log_key = tonumber(take()), keys[tonumber(take())]
    local told, told_in = keys[tonumber(take())], keys[tonumber(take())]
    local family, data = take(), take()
    if number > taken then
      taken, last = number, last + 1
      log_event(log_key, told, told_in, last, family, data)
    end
  end
  server.call('HSET', keys[1], 'events', text(last), taken_field, text(taken))
  server.call('PUBLISH', arguments[2], arguments[3])
  return text(taken)
end

register('log', log, {'allow-oom'})

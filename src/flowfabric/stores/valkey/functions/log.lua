-- Put events that shards have put out into the log, each of them once.
--
-- KEYS  the home shard's state, then logs and the places that are kept for executions
-- ARGV  1 the channel to tell of them   2 what to tell
--       3 how many shards have put them out, then their numbers
--       how many events there are, then for each: the place of its shard among these, its number, log key,
--       execution key, namespace key, family, data
-- Reply for each of the shards the number of the last of its events that is in the log now.
--
-- The events of a shard come from the beginning of its outbox, so there are no gaps between them and what
-- was taken before. Whoever finds them there may send them, several at the same time too: what was taken
-- is known by its number.

local function log(keys, arguments)
  local take = reader(arguments, 3)
  local fields, taken = {}, {}
  for place = 1, tonumber(take()) do
    fields[place] = 'taken:' .. take()
  end
  leap_over_lost(keys[1])
  local state = server.call('HMGET', keys[1], 'events', unpack(fields))
  local last = tonumber(state[1] or 0)
  for place = 1, #fields do
    taken[place] = tonumber(state[place + 1] or 0)
  end
  for _ = 1, tonumber(take()) do
    local place, number, log_key = tonumber(take()), tonumber(take()), keys[tonumber(take())]
    local told, told_in = keys[tonumber(take())], keys[tonumber(take())]
    local family, data = take(), take()
    if number > taken[place] then
      taken[place], last = number, last + 1
      log_event(log_key, told, told_in, last, family, data)
    end
  end
  local written, reply = {'events', text(last)}, {}
  for place, field in ipairs(fields) do
    reply[place] = text(taken[place])
    written[2 * place + 1], written[2 * place + 2] = field, reply[place]
  end
  server.call('HSET', keys[1], unpack(written))
  server.call('PUBLISH', arguments[1], arguments[2])
  return reply
end

register('log', log, {'allow-oom'})

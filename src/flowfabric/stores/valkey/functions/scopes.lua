-- List the scopes of an index that have rows.
--
-- KEYS  the index
-- ARGV  1 the beginning and 2 the end of a range of rows, as ZRANGE takes them   3 how many scopes at most
-- Reply the scopes that have rows in the range, in order.
--
-- One look for each scope, however many rows it has.

local function list_scopes(keys, arguments)
  local scopes, start = {}, arguments[1]
  while #scopes < tonumber(arguments[3]) do
    local row = server.call('ZRANGE', keys[1], start, arguments[2], 'BYLEX', 'LIMIT', 0, 1)[1]
    if not row then
      break
    end
    local scope = string.match(row, '^([^%z]*)%z')
    scopes[#scopes + 1] = scope
    start = '[' .. scope .. BEHIND_SCOPE
  end
  return scopes
end

register('list_scopes', list_scopes, {'no-writes'})

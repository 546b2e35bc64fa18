-- Count what was spent of budgets, one report after the other: see core/rules/spending.py.
--
-- The caller knows the budget, and until when the spender may report. The ceilings are the highest amounts
-- that a hard limit lets pass without a word.
-- Reply of a command its outcome.
-- Declines what was reported before, what passes a ceiling or a bound, and whatever publishes an event; and
-- everything if the budget is not as the caller remembers it.

-- The amounts, or nothing if there are none: an empty table would be packed as a list.
local function unless_empty(amounts)
  return next(amounts) and amounts or nil
end

-- The sum of some amounts and a report. Nothing if it is more than can be counted.
local function sum_of(amounts, deltas)
  local total, count = {}, 0
  for name, amount in pairs(amounts or {}) do
    total[name], count = amount, count + 1
  end
  for name, delta in pairs(deltas) do
    if total[name] == nil then
      total[name], count = 0, count + 1
    end
    total[name] = total[name] + delta
    if total[name] > SAFE_INTEGER_MAX then
      return nil
    end
  end
  return count <= DIMENSIONS_MAX and total or nil
end

local function is_below_ceilings(call, amounts)
  for name, ceiling in pairs(cmsgpack.unpack(call.ceilings)) do
    if (amounts[name] or 0) > ceiling then
      return false
    end
  end
  return true
end

-- The outcome of a report, and by how much it adds to the soft breaches. Nothing where the rule has to tell
-- of a limit that this very report passes, or which one of several it is about.
local function judged(call, usage, spent, deltas)
  local over = nil
  for name, limit in pairs(cmsgpack.unpack(call.soft_limits)) do
    if (deltas[name] or 0) > 0 and spent[name] > limit then
      if over or (usage[name] or 0) <= limit then
        return nil
      end
      over = {name, limit}
    end
  end
  if not over then
    return call.applied, 0
  end
  local dimension, limit = unpack(over)
  return packed_map(call.tag_field, call.soft_breach, 'dimension', dimension,
    'current_usage', spent[dimension], 'soft_limit', limit), 1
end

-- Enter a report in the ledger of its spender. False if it is more than can be counted.
local function enter_in_ledger(change, item, deltas)
  local entered = read_record(item.key.ledger)
  local ledger = entered or record_of(item.ledger, 1)
  local spent = sum_of(ledger.fields.spent, deltas)
  if not spent then
    return false
  end
  ledger.fields.spent = unless_empty(spent)
  local packed = cmsgpack.pack(ledger.fields)
  if entered then
    replace_record(change, item.key.ledger, packed)
  else
    add_record(change, item.key.ledger, change.call.key['keys:budget_ledger'], item.ledger_listed, packed)
  end
  return true
end

-- Remember the report by its key.
local function remember_report(change, item)
  local call = change.call
  local expires_at = math.min(call.now + tonumber(call.kept_ms), SAFE_INTEGER_MAX)
  add_record(change, item.key.dedup, call.key['keys:dedup'], item.dedup_listed,
    item.dedup .. cmsgpack.pack(expires_at))
  add_row(change, INDEX.DUE_DEDUP, '', expires_at, item.dedup_id)
end

local function report_usage(call, item)
  if not is_relied_on(call) or call.now >= tonumber(item.allowed_until) or exists(item.key.dedup) then
    return nil
  end
  local usage, deltas, change = current_record(call, item.key.usage), cmsgpack.unpack(item.deltas), change_of(call)
  if not usage or remembers(usage, item.asked) then
    return nil
  end
  local spent = sum_of(usage.fields.usage, deltas)
  if not spent or not is_below_ceilings(call, spent) then
    return nil
  end
  local outcome, soft_breaches = judged(call, usage.fields.usage or {}, spent, deltas)
  if not outcome or not enter_in_ledger(change, item, deltas) then
    return nil
  end
  remember_report(change, item)
  edit_record(change, item.key.usage)
  usage.fields.usage = unless_empty(spent)
  usage.fields.revision = (usage.fields.revision or 0) + 1
  if soft_breaches > 0 then
    usage.fields.soft_breach_count = (usage.fields.soft_breach_count or 0) + soft_breaches
  end
  remember_request(usage, item.asked, outcome, call.operation)
  return change, outcome
end

register_native('report_usage', report_usage, {})

-- The index rows of an execution to whose parts a function can see: see core/indexes.py.
--
-- No function mentions an index. What was changed is taken from the difference between the rows before
-- and after. An execution has at most one row in an index, so rows are known by their indexes.

-- Sort values as they are written, for as long as a call takes, since most are one of a few instants.
local packed_sorts = {}

-- A sort value above zero as eight bytes, the highest first.
local function packed_sort(sort)
  local packed = packed_sorts[sort]
  if not packed then
    packed = struct.pack('>I4I4', 0x80000000 + math.floor(sort / 0x100000000), sort % 0x100000000)
    packed_sorts[sort] = packed
  end
  return packed
end

-- A row as it is written.
local function row_of(scope, sort, member)
  return scope .. SCOPE_END .. packed_sort(sort) .. member
end

local function head_start_ms(priority)
  local _, exponent = math.frexp(priority + 1)
  local doublings = exponent - 1
  local rest = priority + 1 - 2 ^ doublings
  return AGEING_MS_PER_DOUBLING * doublings + math.floor(AGEING_MS_PER_DOUBLING * rest / 2 ^ doublings)
end

-- The blocker that takes precedence; nothing if nothing blocks the execution.
local function first_blocker(head)
  local first = nil
  for _, blocker in ipairs(head.blockers) do
    if not first or BLOCKER_ORDER[blocker.kind] < BLOCKER_ORDER[first.kind] then
      first = blocker
    end
  end
  return first
end

-- What waits for headroom has rows besides these, which no function sees to.
local function blocked_rows(head, lane, id, first)
  local rows = {}
  if first.kind == BLOCKER.TIME then
    rows[INDEX.DELAYED] = row_of(lane, first.until_ms, id)
  else
    rows[INDEX.BLOCKED] = row_of(lane .. SEPARATOR .. first.kind, head.created_at, id)
  end
  for _, blocker in ipairs(head.blockers) do
    if blocker.until_ms then
      rows[INDEX.DUE_DELAY] = row_of('', blocker.until_ms, id)
    end
  end
  return rows
end

local function runnable_rows(head, lane, id)
  local blocker = first_blocker(head)
  if blocker then
    return blocked_rows(head, lane, id, blocker)
  end
  local since, head_start = head.last_transition_at, head_start_ms(head.priority)
  if head.continuation == CONTINUATION.RESUME then
    head_start = head_start + AGEING_MS_PER_DOUBLING
  end
  return {[INDEX.ELIGIBLE] = row_of(lane .. head.required, since + HEAD_START_MS_MAX - head_start, id)}
end

local function active_rows(head, lane, id)
  local lease, timeout_at = head.lease, head.attempt.timeout_at
  local worker = head.namespace .. SEPARATOR .. lease.worker_instance_id
  return {
    [INDEX.ACTIVE] = row_of(lane, lease.expires_at, id),
    [INDEX.DUE_LEASE] = row_of('', lease.expires_at, id),
    [INDEX.WORKER_LEASES] = row_of(worker, lease.expires_at, id),
    [INDEX.DUE_ATTEMPT] = timeout_at and row_of('', timeout_at, id),
  }
end

-- When an ended execution may go; nothing if it may not yet.
local function removable_from(head)
  local ended_at, since = head.completed_at, head.retention_from
  if not since or head.flow_id then
    return nil
  end
  local kept_until = math.max(ended_at + head.kept_ms, head.keyed_until or 0)
  if kept_until > ended_at then
    return OWN_SCOPE, math.max(since, kept_until)
  end
  return '', since
end

local function terminal_rows(head, lane, id)
  local scope, from = removable_from(head)
  return {
    [INDEX.TERMINAL] = row_of(lane .. SEPARATOR .. PUBLIC_OF_OUTCOME[head.outcome], head.completed_at, id),
    [INDEX.RETENTION] = scope and row_of(scope, from, id),
  }
end

-- The suspension knows the timeout, and has the rows.
local function suspended_rows()
  return {}
end

local rows_in_phase = {
  [PHASE.RUNNABLE] = runnable_rows,
  [PHASE.ACTIVE] = active_rows,
  [PHASE.SUSPENDED] = suspended_rows,
  [PHASE.TERMINAL] = terminal_rows,
}

-- The rows by index, but for the one among all executions, which stays as it is.
local function execution_rows(execution)
  local head, id = execution.head, execution.id
  local rows = rows_in_phase[head.phase](head, head.namespace .. SEPARATOR .. head.lane_id, id)
  if head.deadline_at and head.phase ~= PHASE.TERMINAL then
    rows[INDEX.DUE_DEADLINE] = row_of('', head.deadline_at, id)
  end
  return rows
end

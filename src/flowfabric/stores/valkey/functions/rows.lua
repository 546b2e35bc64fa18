-- The index rows of an execution to whose parts a function can see: see core/indexes.py.
--
-- No function mentions an index. What was changed is taken from the difference between the rows before
-- and after. An execution has at most one row in an index, so rows are known by their indexes. A row is
-- kept as it is written, but for the member that it ends with.

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

-- A row without its member.
local function row_in(scope, sort)
  return scope .. SCOPE_END .. packed_sort(sort)
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
local function blocked_rows(head, lane, rows, first)
  if first.kind == BLOCKER.TIME then
    rows[INDEX.DELAYED] = row_in(lane, first.until_ms)
  else
    rows[INDEX.BLOCKED] = row_in(lane .. SEPARATOR .. first.kind, head.created_at)
  end
  for _, blocker in ipairs(head.blockers) do
    if blocker.until_ms then
      rows[INDEX.DUE_DELAY] = row_in('', blocker.until_ms)
    end
  end
end

local function runnable_rows(head, lane, rows)
  local blocker = first_blocker(head)
  if blocker then
    return blocked_rows(head, lane, rows, blocker)
  end
  local since, head_start = head.last_transition_at, head_start_ms(head.priority)
  if head.continuation == CONTINUATION.RESUME then
    head_start = head_start + AGEING_MS_PER_DOUBLING
  end
  rows[INDEX.ELIGIBLE] = row_in(lane .. head.required, since + HEAD_START_MS_MAX - head_start)
end

local function active_rows(head, lane, rows)
  local lease, timeout_at = head.lease, head.attempt.timeout_at
  rows[INDEX.ACTIVE] = row_in(lane, lease.expires_at)
  rows[INDEX.DUE_LEASE] = row_in('', lease.expires_at)
  rows[INDEX.WORKER_LEASES] = row_in(head.namespace .. SEPARATOR .. lease.worker_instance_id, lease.expires_at)
  if timeout_at then
    rows[INDEX.DUE_ATTEMPT] = row_in('', timeout_at)
  end
end

local function terminal_rows(head, lane, rows)
  local ended_at, since = head.completed_at, head.retention_from
  rows[INDEX.TERMINAL] = row_in(lane .. SEPARATOR .. PUBLIC_OF_OUTCOME[head.outcome], ended_at)
  if not since or head.flow_id then
    return
  end
  local kept_until = math.max(ended_at + head.kept_ms, head.keyed_until or 0)
  if kept_until > ended_at then
    rows[INDEX.RETENTION] = row_in(OWN_SCOPE, math.max(since, kept_until))
  else
    rows[INDEX.RETENTION] = row_in('', since)
  end
end

-- The suspension knows the timeout, and has the rows.
local function suspended_rows()
end

local rows_in_phase = {
  [PHASE.RUNNABLE] = runnable_rows,
  [PHASE.ACTIVE] = active_rows,
  [PHASE.SUSPENDED] = suspended_rows,
  [PHASE.TERMINAL] = terminal_rows,
}

-- The rows by index, but for the one among all executions, which stays as it is.
local function execution_rows(execution)
  local head = execution.head
  local rows = {}
  rows_in_phase[head.phase](head, head.namespace .. SEPARATOR .. head.lane_id, rows)
  if head.deadline_at and head.phase ~= PHASE.TERMINAL then
    rows[INDEX.DUE_DEADLINE] = row_in('', head.deadline_at)
  end
  return rows
end

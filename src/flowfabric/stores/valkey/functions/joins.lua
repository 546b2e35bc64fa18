-- What the end of a member means for the joins behind it: see core/rules/joins.py.
--
-- The parts of a command are the edges that leave the member, each with its join and with the member behind
-- it, as the caller has found them. They are those of a node of the version `node_version`.

local consequences, carry_on

-- A block, since the library has no more than 200 local names.
do
  -- Whether an edge is not resolved, or a join not decided.
  local function is_pending(fields)
    return (fields.state or EDGE.PENDING) == EDGE.PENDING
  end

  local function joined_by(group)
    local policy = group.policy
    return policy and policy.kind or JOIN.ALL_OF
  end

  -- How many of its upstreams have to succeed.
  local function needed(group)
    local kind = joined_by(group)
    if kind == JOIN.ALL_OF then
      return group.total
    end
    return kind == JOIN.QUORUM and group.policy.k or 1
  end

  local function counted(group)
    return (group.satisfied or 0) + (group.failed or 0) + (group.skipped or 0)
  end

  -- Whether nothing becomes of the upstreams that are still at work when the join is decided.
  local function lets_others_be(group)
    return joined_by(group) == JOIN.ALL_OF
      or group.policy.on_satisfied == LET_RUN
      or counted(group) == group.total
  end

  local function count_edge(group, outcome)
    if outcome == OUTCOME.SUCCESS then
      group.satisfied = (group.satisfied or 0) + 1
    elseif outcome == OUTCOME.SKIPPED then
      group.skipped = (group.skipped or 0) + 1
    else
      group.failed = (group.failed or 0) + 1
    end
  end

  -- Decide the join if its counts allow it. False if the rule has to say what follows.
  local function judge(call, group)
    local wanted = needed(group)
    if not is_pending(group) then
      return group.state == EDGE_GROUP.SATISFIED
    elseif (group.satisfied or 0) >= wanted then
      group.state, group.decided_at = EDGE_GROUP.SATISFIED, call.now
      return lets_others_be(group)
    end
    return wanted > group.total or counted(group) - (group.satisfied or 0) <= group.total - wanted
  end

  local function open_dependencies(group)
    return is_pending(group) and needed(group) - (group.satisfied or 0) or 0
  end

  -- Whether the number of its open dependencies is all that a member still waits for.
  local function waits_for_join_alone(head)
    local blocker = head.blockers[1]
    return head.phase == PHASE.RUNNABLE and head.only_blocked
      and #head.blockers == 1 and blocker.kind == BLOCKER.DEPENDENCIES
  end

  -- The member behind a join, and whether it changes. Nothing if the rule has to see to it.
  local function follower(call, part, group)
    local child = current_execution(call, part.key.child, part.child_id)
    if not child or not (child.head.plain or child.head.only_blocked) then
      return nil
    end
    local changes = child.head.unresolved_dependencies ~= open_dependencies(group)
    if changes and not waits_for_join_alone(child.head) then
      return nil
    end
    return child, changes
  end

  -- The joins behind the edges as they will be, and the edges that are resolved. Nothing if the rule has to
  -- see to one of them: to edges that were not applied or were lost before.
  local function joins_behind(call, item, outcome)
    local joins, edges = {}, {}
    for _, part in ipairs(item.parts) do
      local edge = current_record(call, part.key.edge)
      if not edge or edge.fields.state == EDGE.IMPOSSIBLE or not edge.fields.applied_at then
        return nil
      end
      if is_pending(edge.fields) then
        local join, group = joins[part.key.group], current_record(call, part.key.group)
        if not group then
          return nil
        end
        if not join then
          join = {part = part, group = copy_of(group.fields)}
          joins[part.key.group] = join
        end
        count_edge(join.group, outcome)
        edges[#edges + 1] = part.key.edge
      end
    end
    return joins, edges
  end

  -- Decide the joins. False if the rule has to see to one of them: to one that cannot be met any more or has
  -- others cancelled, or to a member behind it that waits for more than its join.
  local function judge_all(call, joins)
    for _, join in pairs(joins) do
      if not judge(call, join.group) then
        return false
      end
      join.child, join.changes = follower(call, join.part, join.group)
      if not join.child then
        return false
      end
    end
    return true
  end

  -- Count the member in its flow as it has ended.
  local function count_member(change, item, head)
    local call = change.call
    local place = current_record(call, item.key.place).fields
    local before = place.counted or ''
    local is_lost_sink = #item.parts == 0 and head.outcome ~= OUTCOME.SUCCESS
    if before == head.outcome and (place.lost_sink or false) == is_lost_sink then
      return
    end
    edit_record(change, item.key.place)
    edit_record(change, item.key.progress)
    local progress = current_record(call, item.key.progress).fields
    local outcomes = progress.outcomes or {}
    local function count(name, step)
      local now = (outcomes[name] or 0) + step
      outcomes[name] = now ~= 0 and now or nil
    end
    if before ~= '' then
      count(before, -1)
    end
    count(head.outcome, 1)
    progress.outcomes, progress.counted_at = outcomes, call.now
    progress.lost_sinks = (progress.lost_sinks or 0) + (is_lost_sink and 1 or 0) - (place.lost_sink and 1 or 0)
    place.counted, place.lost_sink = head.outcome, is_lost_sink
  end

  local function resolve_edge(change, key, head)
    edit_record(change, key)
    local edge = current_record(change.call, key).fields
    edge.state = head.outcome == OUTCOME.SUCCESS and EDGE.SATISFIED or EDGE.IMPOSSIBLE
    edge.upstream_outcome, edge.upstream_generation = head.outcome, head.replay_count
  end

  -- Let the member behind a join follow it. Returns the scope in which it can be claimed now, if it can.
  local function move_on(change, join)
    local call, head = change.call, join.child.head
    local open = open_dependencies(join.group)
    edit_execution(change, join.child)
    head.unresolved_dependencies = open
    head.last_transition_at, head.last_mutation_at = call.now, call.now
    if open > 0 then
      local blocker = head.blockers[1]
      head.blockers = {{kind = blocker.kind, reason = blocker.reason, detail = text(open) .. DEPENDENCIES_UNRESOLVED}}
      return nil
    end
    head.blockers, head.only_blocked, head.plain = nil, nil, nil
    return head.namespace .. SEPARATOR .. head.lane_id .. head.required
  end

  -- What an end leads to behind the member, before anything is changed. Nothing if the rule has to see to it.
  function consequences(call, item, outcome)
    if version_of(item.key.node) ~= item.node_version
      or not current_record(call, item.key.place)
      or not current_record(call, item.key.progress) then
      return nil
    end
    local joins, edges = joins_behind(call, item, outcome)
    if not joins or not judge_all(call, joins) then
      return nil
    end
    return {joins = joins, edges = edges}
  end

  -- Carry the end of a member to what is behind it. Adds to the reply where others can be claimed now.
  function carry_on(change, item, head, found, reply)
    count_member(change, item, head)
    for _, key in ipairs(found.edges) do
      resolve_edge(change, key, head)
    end
    for key, join in pairs(found.joins) do
      edit_record(change, key)
      current_record(change.call, key).fields = join.group
      reply[#reply + 1] = join.changes and move_on(change, join) or nil
    end
  end
end

-- What all functions have in common that decide a command.
--
-- A call has many commands of one kind. Each of them is decided by itself, from what is read, without a
-- write; then all that it changes is written, by calls that cannot fail. A function declines what is
-- unusual: nothing is changed then, and the caller decides by the rules, which know everything. Commands
-- about one record are decided in their order, so what comes behind one that was declined is declined too.
--
-- KEYS and ARGV  what the signature of the function says: see native/signatures.py
-- Reply the mark as it was before, the clock's offset and the clock, then a list of the scopes in which there
--       is work to claim now, the number of the last event in the outbox, or '' if nothing was written, and for
--       each command its reply, '' if it was declined, '?' and what else has to be named if the caller shall
--       ask again, or '!' and why it could not be decided, which must not happen.

-- Some values by their names, in a table that is used again for every command.
local function named(found, names, values, first)
  for place = 1, #names do
    found[names[place]] = values[first + place - 1]
  end
  return found
end

-- Read what every decision rests on. The numbers are those of the last commit.
local function begin(call)
  leap_over_lost(call.key.state)
  local state = server.call('HMGET', call.key.state, 'mark_ms', 'clock_offset_ms', 'commits', 'events', 'put_out')
  call.mark, call.offset = tonumber(state[1] or 0), tonumber(state[2] or 0)
  call.clock = call.given_ms == '' and server_clock_ms() or tonumber(call.given_ms)
  call.now = mark_after(call.mark, call.clock + call.offset, tonumber(call.lag_ms_max))
  call.packed_now = packed_instant(call.now)
  call.version = text(tonumber(state[3] or 0) + 1)
  call.last, call.put_out = tonumber(state[4] or 0), tonumber(state[5] or 0)
  call.sets, call.records, call.edited, call.removed = {}, {}, {}, {}
  call.executions, call.changed, call.event_heads = {}, {}, {}
  call.event_instant = packed_name('at_ms') .. call.packed_now .. packed_name('data')
  packed_sorts = {}
end

-- What a function makes of a command: the execution that it changes, if it changes one, with its rows as
-- they were. Whatever else there is to write is added to it, each kind to a list of its own.
local function change_of(call, execution)
  return {call = call, execution = execution, before = execution and execution_rows(execution)}
end

local NOTHING = {}

-- The same for an execution that is new, with its place in the list of all.
local function new_change(call, execution, listed)
  local head = execution.head
  local created = {index = INDEX.CREATED, member = row_of(head.namespace, head.created_at, execution.id)}
  return {call = call, execution = execution, before = NOTHING, listed = listed, rows = {created}}
end

local function add(change, list, entry)
  local entries = change[list]
  if entries then
    entries[#entries + 1] = entry
  else
    change[list] = {entry}
  end
end

-- What all events of a name begin with in a call, up to the id of the execution.
local function event_head(call, family, name)
  local spelled = family .. name
  local head = call.event_heads[spelled]
  if not head then
    head = packed_name('family') .. packed_name(family) .. packed_name('name') .. packed_name(name)
      .. packed_name('namespace') .. text_head(call.namespace) .. call.namespace .. packed_name('execution_id')
    call.event_heads[spelled] = head
  end
  return head
end

-- The execution is one of the namespace that the call is about.
local function add_event(change, family, name, data)
  local call, execution, flow = change.call, change.execution, ''
  local id, tags, flow_id = execution.id, execution.tags, execution.head.flow_id
  if flow_id then
    flow = packed_name('flow_id') .. text_head(flow_id) .. flow_id
  end
  add(change, 'events', {family = family,
    data = string.char(0x86 + present(flow) + present(tags)) .. event_head(call, family, name)
      .. text_head(id) .. id .. call.event_instant .. data .. flow .. tags})
end

-- A record besides the execution that must not exist yet, with its place in the list of its kind.
local function add_record(change, key, listing, listed, data)
  add(change, 'made', {key = key, listing = listing, listed = listed, data = data})
end

-- Another record in the place of one that exists. Its rows, too, are named one by one.
local function replace_record(change, key, data)
  add(change, 'replaced', {key = key, data = data})
end

-- A record as the commands before this one have left it; nothing if there is none. A command changes it
-- last of all, when nothing can fail any more, and names it with `edit_record`.
local function current_record(call, key)
  if call.records[key] == nil then
    call.records[key] = read_record(key) or false
  end
  return call.records[key] or nil
end

-- Have such a record written: once, however many commands of the call change it.
local function edit_record(change, key)
  add(change, 'edited', key)
end

-- Have a record removed, with its place in the list of its kind. Its rows are named one by one.
local function remove_record(change, key, listing, listed)
  add(change, 'removed', {key = key, listing = listing, listed = listed})
end

-- An execution as the commands before this one have left it; nothing if there is none. Only for those that
-- several commands of a call may change: a command does so last of all, after `edit_execution`.
local function current_execution(call, key, id)
  if call.executions[key] == nil then
    call.executions[key] = read_execution(key, id) or false
  end
  return call.executions[key] or nil
end

-- Have such an execution written: once, however many commands of the call change it.
local function edit_execution(change, execution)
  execution.before = execution.before or execution_rows(execution)
  add(change, 'executions', execution)
end

-- The place of such a record in the list of its kind, if it is new.
local function list_record(change, listing, listed)
  change.entry = {key = listing, member = listed}
end

-- A frame for the end of a stream, and how many the stream keeps then; nothing if that is no matter.
local function add_frame(change, key, id, data, kept)
  change.frame = {key = key, id = id, data = data, kept = kept}
end

-- The change of a command that has an answer and changes nothing.
local UNCHANGED = {}

-- A row of a record that is not an execution.
local function add_row(change, index, scope, sort, member)
  add(change, 'rows', {index = index, member = row_of(scope, sort, member)})
end

-- The same, of a row that is there and is not wanted any more.
local function remove_row(change, index, scope, sort, member)
  add(change, 'rows', {index = index, member = row_of(scope, sort, member), removed = true})
end

-- What a function returns that needs keys which the caller has not named: nothing is changed, and the caller
-- is told what they are about.
local function ask_for(wanted)
  return nil, '?' .. wanted
end

local function exists(...)
  return server.call('EXISTS', ...) > 0
end

-- Whether the record on which all commands of the call rest is as the caller remembers it. One in another
-- shard was compared before the call.
local function is_relied_on(call)
  if call.is_relied_on == nil then
    call.is_relied_on = call.relied_on_version == '' or version_of(call.key.relied_on) == call.relied_on_version
  end
  return call.is_relied_on
end

-- Whether this very request has got its answer already.
local function is_repeated(execution, asked)
  return string.sub(execution.last_request, 1, #asked) == asked
end

-- Writing
--
-- What becomes of ordered sets is gathered through the whole call, so that each set is written once. What
-- a command undoes that one before it in the same call has done is not written at all.

local function members_of(call, key)
  local members = call.sets[key]
  if not members then
    members = {}
    call.sets[key] = members
  end
  return members
end

local function take_out(call, key, member)
  local members = members_of(call, key)
  if members[member] then
    members[member] = nil
  else
    members[member] = false
  end
end

local function put_in(call, key, score, member)
  local members = members_of(call, key)
  if members[member] == false then
    members[member] = nil
  else
    members[member] = score
  end
end

local function write_execution_rows(call, execution, before)
  local key, after = call.key, execution_rows(execution)
  for index, row in pairs(before) do
    if row ~= after[index] then
      take_out(call, key[index], row)
    end
  end
  for index, row in pairs(after) do
    if row ~= before[index] then
      put_in(call, key[index], '0', row)
    end
  end
end

local function write_rows(call, change)
  for _, row in ipairs(change.rows or NOTHING) do
    if row.removed then
      take_out(call, call.key[row.index], row.member)
    else
      put_in(call, call.key[row.index], '0', row.member)
    end
  end
end

-- What is told of an execution is a set of its own, and is hardly written to by another command of the call.
local function write_to_log(call, item, events)
  local key, told = call.key, {}
  for number, event in ipairs(events) do
    call.last = call.last + 1
    local place = text(call.last)
    local member = place .. ' ' .. event.family
    server.call('XADD', key[LOG[event.family]], place, 'event', event.data)
    put_in(call, key[TOLD_IN[event.family]], place, member)
    told[2 * number - 1], told[2 * number] = place, member
  end
  if #told > 0 then
    server.call('ZADD', item.key.told, unpack(told))
  end
end

local function write_to_outbox(call, change)
  local execution = change.execution
  for _, event in ipairs(change.events or NOTHING) do
    call.put_out = call.put_out + 1
    put_out_event(
      call.key.outbox, call.put_out, event.family, execution.id, execution.head.namespace, event.data)
  end
end

-- Whether there is an execution to write, and it is not written at the end of the call.
local function is_written_now(call, execution)
  return execution and not call.changed[execution]
end

-- The execution and what is made with it, in one go.
local function write_made(call, change)
  local execution, records = change.execution, {}
  if is_written_now(call, execution) then
    records[1], records[2] = execution.key, packed_execution(change)
  end
  for _, made in ipairs(change.made or NOTHING) do
    local count = #records
    records[count + 1], records[count + 2] = made.key, call.version .. ':' .. made.data
    call.removed[made.key], call.records[made.key] = nil, nil
    put_in(call, made.listing, '0', made.listed)
  end
  write_together(records)
end

local function write_frame(frame)
  server.call('XADD', frame.key, frame.id, 'frame', frame.data)
  if frame.kept then
    server.call('XTRIM', frame.key, 'MAXLEN', '=', text(frame.kept))
  end
end

-- What is removed is there until the end of the call, for no key may be touched again once it is gone.
local function write_removed(call, change)
  for _, removed in ipairs(change.removed or NOTHING) do
    call.removed[removed.key], call.edited[removed.key], call.records[removed.key] = true, nil, false
    take_out(call, removed.listing, removed.listed)
  end
end

local function write(call, item, change)
  for _, execution in ipairs(change.executions or NOTHING) do
    call.changed[execution] = true
  end
  write_made(call, change)
  if is_written_now(call, change.execution) then
    write_execution_rows(call, change.execution, change.before)
  end
  if change.listed then
    put_in(call, call.key['keys:execution'], '0', change.listed)
  end
  for _, key in ipairs(change.edited or NOTHING) do
    call.edited[key] = true
  end
  write_removed(call, change)
  if change.entry then
    put_in(call, change.entry.key, '0', change.entry.member)
  end
  if change.frame then
    write_frame(change.frame)
  end
  for _, replaced in ipairs(change.replaced or NOTHING) do
    server.call('SET', replaced.key, call.version .. ':' .. replaced.data)
  end
  write_rows(call, change)
  if call.logs == '1' then
    write_to_log(call, item, change.events or NOTHING)
  else
    write_to_outbox(call, change)
  end
  call.written = true
end

-- The records that several commands of the call may have changed, each once.
local function write_edited(call)
  local records = {}
  for key in pairs(call.edited) do
    local count = #records
    records[count + 1], records[count + 2] = key, call.version .. ':' .. packed_record(call.records[key])
  end
  for execution in pairs(call.changed) do
    local count = #records
    records[count + 1] = execution.key
    records[count + 2] = packed_execution({call = call, execution = execution})
    write_execution_rows(call, execution, execution.before)
  end
  write_together(records)
end

local function write_sets(call)
  for key, members in pairs(call.sets) do
    local taken, added = {}, {}
    for member, score in pairs(members) do
      if score then
        local count = #added
        added[count + 1], added[count + 2] = score, member
      else
        taken[#taken + 1] = member
      end
    end
    call_with('ZADD', key, added)
    call_with('ZREM', key, taken) -- a set that it empties may not be touched again: see commit.lua
  end
end

-- The scopes of the eligible index in which the call has put rows.
local function claimable_scopes(call)
  local scopes, known = {}, {}
  for row, put in pairs(call.sets[call.key[INDEX.ELIGIBLE]] or {}) do
    local scope = put and string.match(row, '^([^%z]*)%z')
    if scope and not known[scope] then
      known[scope] = true
      scopes[#scopes + 1] = scope
    end
  end
  return scopes
end

-- What the call is published with: see telling.py.
local function message_of(call, scopes)
  if #scopes > SCOPES_MAX then
    return string.match(call.origin, '^%S+')
  end
  return table.concat({call.origin, unpack(scopes)}, SCOPE_END)
end

-- Write what is written once in a call, and tell of it. Returns the scopes in which there is work to claim.
local function finish(call)
  write_edited(call)
  local scopes = claimable_scopes(call)
  write_sets(call)
  for key in pairs(call.removed) do
    server.call('DEL', key)
  end
  server.call('HSET', call.key.state, 'commits', call.version, 'events', text(call.last),
    'put_out', text(call.put_out), 'mark_ms', text(call.now))
  server.call('PUBLISH', call.channel, message_of(call, scopes))
  return scopes
end

-- Decide a command and write what it changes. Returns its reply, and whether it was declined.
local function decide_one(call, item, decide)
  local sound, change, answer = pcall(decide, call, item)
  if not sound then
    return '!' .. (type(change) == 'table' and change.err or tostring(change)), true
  elseif not change then
    return answer or '', true
  end
  if change ~= UNCHANGED then
    write(call, item, change)
  end
  return answer
end

-- Hands out some keys and arguments by the names that they have in a signature, in their order.
local function naming(keys, arguments)
  local next_key, next_argument = 1, 1
  return function(found, of_keys, key_names, argument_names)
    named(of_keys, key_names, keys, next_key)
    named(found, argument_names, arguments, next_argument)
    next_key, next_argument = next_key + #key_names, next_argument + #argument_names
    return found
  end
end

-- Register a function that decides commands, given how it decides one: it returns the change and the reply;
-- no change, and maybe a reply, if it changes nothing.
local function register_native(name, decide, flags)
  local signature = SIGNATURES[name]
  local function run(keys, arguments)
    local name_next = naming(keys, arguments)
    local call = {key = {}}
    name_next(call, call.key, signature.keys, signature.arguments)
    begin(call)
    local reply = {text(call.mark), text(call.offset), text(call.clock), {}, ''}
    local item, left = {key = {}}, {}
    for _ = 1, tonumber(call.count) do
      name_next(item, item.key, signature.item_keys, signature.item_arguments)
      item.parts = item.part_count and {}
      for place = 1, tonumber(item.part_count or 0) do
        local part = {key = {}}
        item.parts[place] = name_next(part, part.key, signature.part_keys, signature.part_arguments)
      end
      local about = item.key[signature.item_keys[1]]
      if left[about] then
        reply[#reply + 1] = ''
      else
        local declined
        reply[#reply + 1], declined = decide_one(call, item, decide)
        left[about] = declined
      end
    end
    if call.written then
      reply[4], reply[5] = finish(call), text(call.put_out)
    end
    return reply
  end
  register(name, run, flags)
end

-- Executions as they are written: see packing.py and core/layout.py.
--
-- A function reads and changes the head, puts other bytes in the place of the policy, the tags, the last
-- request and the released fence, and copies the rest. What the head does not say is as usual.

local FRAME = '>BI4I4I4I4I4I4'
local MAP = 'BI2'
local MAP_16 = 0xde
local usual = {__index = USUAL}

-- What is written again and again is packed once: names by themselves, and what a text of some length
-- begins with. A text is written as `text_head(text) .. text`, which joins with what is around it in one
-- go, while cmsgpack makes a string of its own of everything that it is given.
local packed_names, text_heads = {}, {}

local function packed_name(name)
  local packed = packed_names[name]
  if not packed then
    packed = cmsgpack.pack(name)
    packed_names[name] = packed
  end
  return packed
end

local function text_head(value)
  local head = text_heads[#value]
  if not head then
    local packed = cmsgpack.pack(value)
    head = string.sub(packed, 1, #packed - #value)
    text_heads[#value] = head
  end
  return head
end

local function copy_of(values)
  local copy = {}
  for name, value in pairs(values) do
    copy[name] = value
  end
  return copy
end

-- A map of up to 15 pairs; a value may be absent.
local function packed_map(...)
  local count = select('#', ...) / 2
  return string.char(0x80 + count) .. (count > 0 and cmsgpack.pack(...) or '')
end

-- An instant in as many bytes as any other.
local function packed_instant(instant)
  return struct.pack('>BI4I4', 0xcf, math.floor(instant / 0x100000000), instant % 0x100000000)
end

-- Bytes, which cmsgpack would write as text.
local function packed_bytes(bytes)
  if #bytes < 0x100 then
    return struct.pack('>BB', 0xc4, #bytes) .. bytes
  elseif #bytes < 0x10000 then
    return struct.pack('>BI2', 0xc5, #bytes) .. bytes
  end
  return struct.pack('>BI4', 0xc6, #bytes) .. bytes
end

-- A list whose parts are each behind their length.
local function unpacked_list(packed)
  local parts, place = {}, 1
  while place <= #packed do
    parts[#parts + 1], place = struct.unpack('>I4c0', packed, place)
  end
  return parts
end

-- How many pairs a packed map has, and the pairs.
local function pairs_of(map)
  local first = string.byte(map)
  if first == MAP_16 then
    return string.byte(map, 2) * 256 + string.byte(map, 3), string.sub(map, 4)
  end
  return first - 0x80, string.sub(map, 2)
end

local function present(part)
  return part == '' and 0 or 1
end

local function count_alone(execution)
  return present(execution.policy) + present(execution.tags) + present(execution.last_request)
    + present(execution.released)
end

-- The execution that is packed in some bytes, from a place on.
local function execution_of(key, id, stored, start)
  local rest_count, head, policy, tags, last_request, released, rest, _, count, place
    = struct.unpack(FRAME .. MAP, stored, start)
  assert(place + head + policy + tags + last_request + released + rest == #stored + 1, 'the record is damaged')
  local policy_at = place + head
  local tags_at = policy_at + policy
  local last_request_at = tags_at + tags
  local released_at = last_request_at + last_request
  local rest_at = released_at + released
  local execution = {
    key = key,
    id = id,
    rest_count = rest_count,
    policy = string.sub(stored, policy_at, tags_at - 1),
    tags = string.sub(stored, tags_at, last_request_at - 1),
    last_request = string.sub(stored, last_request_at, released_at - 1),
    released = string.sub(stored, released_at, rest_at - 1),
    rest = string.sub(stored, rest_at),
    head = string.sub(stored, place, policy_at - 1),
  }
  count = count - count_alone(execution) - rest_count
  execution.head = setmetatable(cmsgpack.unpack(struct.pack('>BI2', MAP_16, count) .. execution.head), usual)
  return execution
end

-- Read an execution, and another record as it is stored. Nothing in the place of what there is not.
local function read_execution(key, id, other_key)
  local stored = other_key and server.call('MGET', key, other_key) or {server.call('GET', key)}
  local execution = stored[1] and execution_of(key, id, stored[1], string.find(stored[1], ':', 1, true) + 1)
  return execution, stored[2]
end

-- The bytes that are written for what a function makes of an execution. They are joined once, for each
-- part may be long.
local function packed_execution(change)
  if change.packed then
    return change.packed
  end
  local execution = change.execution
  local count, head = pairs_of(cmsgpack.pack(execution.head))
  local policy, tags, rest = execution.policy, execution.tags, execution.rest
  local last_request, released = execution.last_request, execution.released
  count = count + count_alone(execution) + execution.rest_count
  change.packed = change.call.version .. ':'
    .. struct.pack(FRAME .. MAP, execution.rest_count, #head, #policy, #tags, #last_request, #released, #rest,
      MAP_16, count) .. head .. policy .. tags .. last_request .. released .. rest
  return change.packed
end

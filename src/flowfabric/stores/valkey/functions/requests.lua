-- Records that a function reads as a whole, and the answers that they keep: see engine/commits.py.
--
-- Such a record is one map, of numbers, texts, and maps and lists of these, but for the answers and for fields
-- of bytes. Bytes cmsgpack cannot read, so these are told apart by their lengths and only copied. Most records
-- have none, and are read and written in one go.

local FIXED_MAP, FIXED_LIST, FIXED_TEXT, FIXED_TEXT_END = 0x80, 0x90, 0xa0, 0xc0
local BYTES_FIRST, BYTES_LAST = 0xc4, 0xc6
-- How the length of bytes, or of a longer text, is packed behind its first byte.
local LENGTHS = {[0xc4] = '>B', [0xc5] = '>I2', [0xc6] = '>I4', [0xd9] = '>B', [0xda] = '>I2', [0xdb] = '>I4'}

local function begins_with(packed, start)
  return string.sub(packed, 1, #start) == start
end

-- The place behind a text, or behind bytes.
local function place_behind(packed, place)
  local first = string.byte(packed, place)
  if first < FIXED_TEXT_END then
    return place + 1 + first - FIXED_TEXT
  end
  local length, start = struct.unpack(LENGTHS[first], packed, place + 1)
  return start + length
end

-- Whether there are bytes at a place, or something that cmsgpack can read.
local function are_bytes_at(packed, place)
  local first = string.byte(packed, place)
  return first >= BYTES_FIRST and first <= BYTES_LAST
end

-- The bytes that are packed as such.
local function unpacked_bytes(packed)
  local _, start = struct.unpack(LENGTHS[string.byte(packed)], packed, 2)
  return string.sub(packed, start)
end

-- A request with its answer, which stay packed, and the place behind them.
local function request_at(packed, place)
  local operation = place_behind(packed, place_behind(packed, place + 1))
  local behind = place_behind(packed, operation)
  return {
    packed = string.sub(packed, place, behind - 1),
    operation = cmsgpack.unpack(string.sub(packed, operation, behind - 1)),
  }, behind
end

local function requests_at(packed, place)
  local requests, behind = {}, place + 1
  for number = 1, string.byte(packed, place) - FIXED_LIST do
    requests[number], behind = request_at(packed, behind)
  end
  return requests, behind
end

-- The record that is packed in some bytes, from a place on, if that may have bytes.
local function record_with_bytes(stored, start)
  local count, place = string.byte(stored, start), start + 1
  if count == MAP_16 then
    count, place = struct.unpack('>I2', stored, place)
  else
    count = count - FIXED_MAP
  end
  local record = {fields = {}, bytes = {}, earlier = {}}
  for _ = 1, count do
    -- cmsgpack counts places from 0.
    local behind, name = cmsgpack.unpack_one(stored, place - 1)
    if name == 'last_request' then
      record.last, place = request_at(stored, behind + 1)
    elseif name == 'earlier_requests' then
      record.earlier, place = requests_at(stored, behind + 1)
    elseif are_bytes_at(stored, behind + 1) then
      place = place_behind(stored, behind + 1)
      record.bytes[name] = string.sub(stored, behind + 1, place - 1)
    else
      behind, record.fields[name] = cmsgpack.unpack_one(stored, behind)
      place = behind + 1
    end
  end
  return record
end

-- False if there are no bytes behind a place for sure. What they begin with, texts and numbers hold, too.
local function may_have_bytes(stored, start)
  for first = BYTES_FIRST, BYTES_LAST do
    if string.find(stored, string.char(first), start, true) then
      return true
    end
  end
  return false
end

-- The record that is packed in some bytes, from a place on.
local function record_of(stored, start)
  if may_have_bytes(stored, start) then
    return record_with_bytes(stored, start)
  end
  return {fields = cmsgpack.unpack(string.sub(stored, start)), bytes = {}, earlier = {}}
end

-- Read a record. Nothing if there is none.
local function read_record(key)
  local stored = server.call('GET', key)
  return stored and record_of(stored, string.find(stored, ':', 1, true) + 1)
end

-- Whether a record remembers a request, whatever it asked for.
local function remembers(record, asked)
  if record.last and begins_with(record.last.packed, asked) then
    return true
  end
  for _, request in ipairs(record.earlier) do
    if begins_with(request.packed, asked) then
      return true
    end
  end
  return false
end

-- Keep a request and its answer in a record. The one before it is kept beside it if it would act anew.
local function remember_request(record, asked, outcome, operation)
  local earlier, before = record.earlier, record.last
  if before and ACTING_ANEW[before.operation] then
    if #earlier == EARLIER_REQUESTS_MAX then
      table.remove(earlier, 1)
    end
    earlier[#earlier + 1] = before
  end
  record.last = {packed = asked .. packed_bytes(outcome) .. cmsgpack.pack(operation), operation = operation}
end

-- The bytes of a record, with the requests that it remembers.
local function packed_record(record)
  if not record.last and #record.earlier == 0 and not next(record.bytes) then
    return cmsgpack.pack(record.fields)
  end
  local count, fields = pairs_of(cmsgpack.pack(record.fields))
  local parts = {fields}
  local function add(name, packed)
    count = count + 1
    parts[#parts + 1] = packed_name(name)
    parts[#parts + 1] = packed
  end
  for name, packed in pairs(record.bytes) do
    add(name, packed)
  end
  if record.last then
    add('last_request', record.last.packed)
  end
  if #record.earlier > 0 then
    add('earlier_requests', string.char(FIXED_LIST + #record.earlier))
    for _, request in ipairs(record.earlier) do
      parts[#parts + 1] = request.packed
    end
  end
  return struct.pack('>BI2', MAP_16, count) .. table.concat(parts)
end

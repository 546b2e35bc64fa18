-- Records that a function reads as a whole, and the answers that they keep: see engine/commits.py.
--
-- Such a record is one map, of numbers, texts and maps of these but for the answers. These hold bytes, which cmsgpack
-- cannot read, so they are told apart by their lengths and only copied.

local FIXED_MAP, FIXED_LIST, FIXED_TEXT, FIXED_TEXT_END = 0x80, 0x90, 0xa0, 0xc0
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

-- The record that is packed in some bytes, from a place on.
local function record_of(stored, start)
  local count, place = string.byte(stored, start), start + 1
  if count == MAP_16 then
    count, place = struct.unpack('>I2', stored, place)
  else
    count = count - FIXED_MAP
  end
  local record = {fields = {}, earlier = {}}
  for _ = 1, count do
    -- cmsgpack counts places from 0.
    local behind, name = cmsgpack.unpack_one(stored, place - 1)
    if name == 'last_request' then
      record.last, place = request_at(stored, behind + 1)
    elseif name == 'earlier_requests' then
      record.earlier, place = requests_at(stored, behind + 1)
    else
      behind, record.fields[name] = cmsgpack.unpack_one(stored, behind)
      place = behind + 1
    end
  end
  return record
end

-- Read a record. Nothing if there is none.
local function read_record(key)
  local stored = server.call('GET', key)
  return stored and record_of(stored, string.match(stored, '^%d+:()'))
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
  local count, fields = pairs_of(cmsgpack.pack(record.fields))
  local parts = {fields}
  if record.last then
    count = count + 1
    parts[2], parts[3] = packed_name('last_request'), record.last.packed
  end
  if #record.earlier > 0 then
    count = count + 1
    parts[#parts + 1] = packed_name('earlier_requests') .. string.char(FIXED_LIST + #record.earlier)
    for _, request in ipairs(record.earlier) do
      parts[#parts + 1] = request.packed
    end
  end
  return struct.pack('>BI2', MAP_16, count) .. table.concat(parts)
end

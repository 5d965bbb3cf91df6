-- A member registers at a server.
-- KEYS: the room.  ARGV: place, record, ttl (ms), prefix of the servers' channels, the room's id.
-- Answers who else is in the room at other servers: place, age (ms), record, and so on.
-- A value is when it was written and when it lapses (ms since 1970, 13 digits each) and the record.
local key, place, record, ttl = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Whatever else is there is nobody's: no room has so many members.
if redis.call('TYPE', key).ok ~= 'hash' or redis.call('HLEN', key) > 1024 then
  redis.call('DEL', key)
end
local all, found, servers, before = redis.call('HGETALL', key), {}, {}, ''
local own, digits = place:sub(9), '^' .. ('%d'):rep(26)
for i = 1, #all, 2 do
  local field, value = all[i], all[i + 1]
  local lapses = value:find(digits) and tonumber(value:sub(14, 26)) or 0
  if #field ~= 16 or #value > 26 + 559 or lapses <= now or lapses > now + 65000000 then
    redis.call('HDEL', key, field)
  elseif field == place then
    before = value:sub(27, 30)
  elseif field:sub(9) ~= own then
    found[#found + 1] = field
    found[#found + 1] = math.max(0, now - tonumber(value:sub(1, 13)))
    found[#found + 1] = value:sub(27)
    servers[field:sub(9)] = true
  end
end
redis.call('HSET', key, place, string.format('%013d%013d', now, now + ttl) .. record)
if redis.call('PTTL', key) < ttl then
  redis.call('PEXPIRE', key, ttl)
end
-- Another number of its news, which stands first: the other servers hear of it.
if before ~= record:sub(1, 4) then
  for server in pairs(servers) do
    local name = server:gsub('.', function(byte) return string.format('%02x', byte:byte()) end)
    redis.call('PUBLISH', ARGV[4] .. name, '\1' .. ARGV[5] .. place .. record)
  end
end
return found

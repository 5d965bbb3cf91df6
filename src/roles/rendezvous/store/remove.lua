-- A member is not registered at a server any more.
-- KEYS: the room.  ARGV: place, prefix of the servers' channels, the room's id.
local key, place = KEYS[1], ARGV[1]
if redis.call('TYPE', key).ok ~= 'hash' or redis.call('HDEL', key, place) == 0 then
  return 0
end
local own, servers = place:sub(9), {}
for _, field in ipairs(redis.call('HKEYS', key)) do
  if #field == 16 and field:sub(9) ~= own then
    servers[field:sub(9)] = true
  end
end
for server in pairs(servers) do
  local name = server:gsub('.', function(byte) return string.format('%02x', byte:byte()) end)
  redis.call('PUBLISH', ARGV[2] .. name, '\3' .. ARGV[3] .. place)
end
return 1

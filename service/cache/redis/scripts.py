"""What Redis does atomically: Lua scripts, sent in full the first time and by their hash from then on."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import NamedTuple

Argument = str | bytes | int
Plain = tuple[Argument, ...]


class Script:
    """One Lua script."""

    def __init__(self, lua: str) -> None:
        self.lua = lua
        self.sha = sha1(lua.encode(), usedforsecurity=False).hexdigest()


class Invocation(NamedTuple):
    """A command that runs a script."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Argument] = ()


Command = Plain | Invocation

# A key of another type reads as '', which is no entry. Any other error, such as a missing permission, fails the script.
_LOOK = """
local function look(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then
    if not string.find(value.err, 'WRONGTYPE', 1, true) then error(value.err, 0) end
    value = ''
  end
  return value, value and redis.call('PTTL', key)
end
"""

READ = Script(
    _LOOK
    + """
local found = {}
for i, key in ipairs(KEYS) do
  found[2 * i - 1], found[2 * i] = look(key)
end
return found
"""
)
"""Keys -> value and milliseconds left of each, nil for a missing one. Writes nothing: works under OOM and READONLY."""

PUT = Script(
    _LOOK
    + """
local first = {}
for i, key in ipairs(KEYS) do
  local blob, ttl = ARGV[2 * i - 1], ARGV[2 * i]
  if string.byte(ttl) == 45 then  -- a minus
    redis.call('SET', key, blob, 'PX', string.sub(ttl, 2))
    first[2 * i - 1], first[2 * i] = false, false
  elseif redis.call('SET', key, blob, 'PX', ttl, 'NX') then
    first[2 * i - 1], first[2 * i] = false, false
  else
    first[2 * i - 1], first[2 * i] = look(key)
  end
end
return first
"""
)
"""Keys, and of each blob and ttl in ms, negative if it overwrites -> as READ, of a value that was there first; nil for
ours."""

# The four scripts of the lease share this. KEYS as ``RedisKeys.lease``, ARGV[1] the token, ARGV[2] the lease in ms.
_LEASE = """
local entry, lease, waits, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, lease_ms = ARGV[1], ARGV[2]

local function ours()
  return redis.pcall('GET', lease) == token
end

local function drop_damaged(key, longest_ms)  -- one that would outlive all that we write
  local left = redis.call('PTTL', key)
  if left == -1 or left > tonumber(longest_ms) then redis.call('DEL', key) end
end

local function tell_waiting(channel, key)
  -- The script must not fail for a user without permission for channels: hints may be lost.
  if redis.call('DEL', waits) == 1 then redis.pcall('PUBLISH', channel, key) end
end
"""

CLAIM = Script(
    _LOOK
    + _LEASE
    + """
local max_claims, claims_ms = tonumber(ARGV[3]), ARGV[4]
local value, left = look(entry)
if value then return {'stored', value, left} end
drop_damaged(lease, lease_ms)
drop_damaged(claims, claims_ms)
if redis.call('EXISTS', lease) == 1 then
  redis.call('SET', waits, 1, 'PX', lease_ms)
  return {'follow', false, false}
end
local before = redis.pcall('GET', claims)
before = type(before) == 'string' and tonumber(before) or 0
if before >= max_claims then return {'refused', false, false} end
redis.call('SET', lease, token, 'PX', lease_ms)
redis.call('SET', claims, before + 1, 'PX', claims_ms)
return {'lead', false, false}
"""
)
"""Token, lease in ms, most claims, their life in ms -> stored (and value and ms left), lead, follow or refused."""

RENEW = Script(
    _LEASE
    + """
if not ours() then return 0 end
return redis.call('PEXPIRE', lease, lease_ms)
"""
)
"""Token, lease in ms -> whether the lease is still ours."""

COMMIT = Script(
    _LOOK
    + _LEASE
    + """
local blob, ttl, channel, key = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local first, left = false, false
-- SET comes first: under OOM, Redis refuses it only in a script that has not deleted anything yet.
if not redis.call('SET', entry, blob, 'PX', ttl, 'NX') then first, left = look(entry) end
if ours() then redis.call('DEL', lease) end
redis.call('DEL', claims)  -- even if the lease was lost: this input kills no worker
tell_waiting(channel, key)
return {first, left}
"""
)
"""Token, lease in ms, blob, its ttl in ms, a channel, the key to publish there -> what was there first, as PUT."""

ABORT = Script(
    _LEASE
    + """
if ARGV[5] == '1' then redis.call('DEL', claims) end
if not ours() then return 0 end
redis.call('DEL', lease, claims)
tell_waiting(ARGV[3], ARGV[4])
return 1
"""
)
"""Token, lease in ms, a channel, the key to publish there, 1 for a claim long past -> whether the lease was ours."""

DISCARD = Script("""
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'table' or value == ARGV[1] or redis.call('PTTL', KEYS[1]) == -1 then
  return redis.call('UNLINK', KEYS[1])
end
return 0
""")
"""Remove a corrupt value, unless a good one has replaced it meanwhile."""

_NOW = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
"""

GENERATIONS = Script(
    _NOW
    + """
local worker, keep_ms, channel = ARGV[1], ARGV[2], ARGV[3]

local function register(readers)
  local added = redis.pcall('ZADD', readers, now, worker)
  if type(added) == 'table' and string.find(added.err, 'WRONGTYPE', 1, true) then
    redis.call('DEL', readers)
    added = redis.pcall('ZADD', readers, now, worker)
  end
  if type(added) == 'table' then return added.err end  -- under OOM, say
  if redis.call('ZCARD', readers) == 1 then redis.call('ZADD', readers, -now, '') end
  redis.call('PEXPIRE', readers, keep_ms)
  return ''
end

local told = {}
for i = 2, #KEYS, 2 do
  local key, model, new, refused = KEYS[i - 1], ARGV[3 * i / 2 + 1], ARGV[3 * i / 2 + 2], ARGV[3 * i / 2 + 3]
  told[i - 1] = register(KEYS[i])
  local generation = redis.pcall('GET', key)
  if type(generation) == 'table' then generation = '' end
  if not generation or generation == refused then
    generation = not redis.pcall('SET', key, new).err and new
    if generation then redis.pcall('PUBLISH', channel, model) end
  end
  told[i] = generation
  -- Redis evicts what is read least. With a generation all answers of its model would go, so it must seem the hottest.
  for _ = 1, 100 do redis.pcall('GET', key) end
end
return told
"""
)
"""Of each model the key of its generation and ``RedisKeys.readers``; the worker's name, ms to keep it among the
readers, a channel, and for each model its name, a new sealed generation, and one that is refused ('' is a value of
another type) -> of each model '' or why the worker is not among its readers, and its sealed generation. One that is
missing or refused is replaced, and the model's name published; nil where it cannot be."""

PURGE = Script(
    _NOW
    + """
local key, readers, valid_ms, cut_off_ms = KEYS[1], KEYS[2], tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('SET', key, ARGV[1])
redis.pcall('ZREMRANGEBYSCORE', readers, 0, '(' .. now - cut_off_ms)
local registered = redis.pcall('ZRANGEBYSCORE', readers, now - valid_ms, '+inf')
local cut_off = redis.pcall('ZCOUNT', readers, 0, '(' .. now - valid_ms)
local listening = redis.pcall('PUBLISH', ARGV[2], ARGV[3])
local since, server = redis.pcall('ZSCORE', readers, ''), redis.pcall('INFO', 'server')
local up = type(server) == 'string' and string.match(server, 'uptime_in_seconds:(%d+)') or 0
local all = type(since) == 'string' and now + since > valid_ms and up * 1000 > valid_ms and cut_off == 0
return {type(listening) == 'number' and listening or 0, all and 1 or 0, registered.err and {} or registered}
"""
)
"""A generation's key and ``RedisKeys.readers``; the new sealed generation, a channel, the model's name to publish
there, the ms that a reading holds, and the ms for which a worker that stops reading counts as cut off and not as
ended -> how many listen, whether Redis knows all who may have answers from before, and whose reading still holds. Not
all where one is cut off, nor where Redis has been up, or has had a list of them, for less than a reading holds."""

ACKNOWLEDGE = Script("""
redis.call('SADD', KEYS[1], ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""")
"""As ``RedisKeys.acknowledgements``; the worker's name, ms to keep it."""

COUNT = Script("""
local hll, counts = KEYS[1], KEYS[2]

local function add()
  local failed = type(redis.pcall('PFADD', hll)) == 'table'
  for i = 4, #ARGV, 1000 do  -- Lua's stack is not much larger
    failed = failed or type(redis.pcall('PFADD', hll, unpack(ARGV, i, math.min(i + 999, #ARGV)))) == 'table'
  end
  return not failed
end

local asked, hits = redis.pcall('HGET', counts, 'asked'), redis.pcall('HGET', counts, 'hits')
local sound = type(asked) == 'string' and type(hits) == 'string' and tonumber(asked) and tonumber(hits)
if not sound or redis.call('EXISTS', hll) == 0 or not add() then
  redis.call('DEL', hll, counts)
  add()
  redis.call('HSET', counts, 'asked', 0, 'hits', 0)
  redis.call('EXPIRE', hll, ARGV[1])
  redis.call('EXPIRE', counts, ARGV[1])
end
return {
  redis.call('HINCRBY', counts, 'asked', ARGV[2]), redis.call('HINCRBY', counts, 'hits', ARGV[3]),
  redis.call('PFCOUNT', hll)
}
""")
"""KEYS as ``RedisKeys.distinct_questions``; seconds to keep the counts, questions and hits to add, cache keys ->
questions, hits, and how many distinct ones. If one of the two keys is missing or damaged, both begin anew, so that they
tell of the same time."""

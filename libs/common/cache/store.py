"""L2: entries in Redis, beside the tags that make them valid, and the leases by which processes share a load.

The part of a key before its first colon is its scope. What was loading when keys of its scope were removed by hand is
not stored: the fence of a scope is read before a load and must be the same after it.
"""

import asyncio
import random
import secrets
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from libs.common.cache.joined import JoinedReads
from libs.common.cache.local import Entry
from libs.common.cache.tags import CHANNEL, KEYS_BEGIN, PRIMARY, TAG_SECONDS, TagValue, fresh_stamp, parse, tag_key
from libs.common.consistency import Position

# Longer than a load takes; a process that dies while it loads holds up the others for this long.
LEASE_SECONDS = 2.0
COMPRESSED_BYTES = 2048
_PAUSES = (0.005, 0.04)
_JITTER = 0.1
_ENTRY = "entry:"
_LEASE = "lease:"
_FENCE = "fence:"
_SCANNED = 1000  # keys that Redis looks at in one step
_PLAIN, _COMPRESSED = b"\0", b"\1"

# KEYS: lease, entry, fence, tags; ARGV: stamp, seconds of a tag, token, milliseconds of a lease. Gives the fence and
# every tag a stamp where it is missing, with an unknown floor, and takes the lease if it is free, or that of a load
# which began before the last bump. Returns whether it was taken, the entry, and the values of the fence and all tags.
_BEGIN = """
local answer, stamps = {0, redis.call('GET', KEYS[2])}, ''
for i = 3, #KEYS do
  redis.call('SET', KEYS[i], ARGV[1] .. '|~', 'NX', 'EX', ARGV[2])
  answer[i] = redis.call('GETEX', KEYS[i], 'EX', ARGV[2])
  stamps = stamps .. '|' .. string.match(answer[i], '^[^|]*')
end
local lease = redis.call('GET', KEYS[1])
if not lease or string.match(lease, '|.*$') ~= stamps then
  redis.call('SET', KEYS[1], ARGV[3] .. stamps, 'PX', ARGV[4])
  answer[1] = 1
end
return answer
"""

# KEYS: entry, lease, fence, tags; ARGV: entry, its seconds, token, floor or '', seconds of a tag, the fence's value,
# the stamp of each tag. Stores the entry if the fence is still the same, gives unknown floors of tags that nothing
# bumped since the position that the load has reached, and gives the lease back.
_FINISH = """
if redis.call('GET', KEYS[3]) == ARGV[6] then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) end
if ARGV[4] ~= '' then
  for i = 4, #KEYS do
    local stamp = ARGV[i + 3]
    if redis.call('GET', KEYS[i]) == stamp .. '|~' then
      redis.call('SET', KEYS[i], stamp .. '|' .. ARGV[4], 'EX', ARGV[5])
    end
  end
end
local lease = redis.call('GET', KEYS[2])
if lease and string.match(lease, '^[^|]*') == ARGV[3] then redis.call('DEL', KEYS[2]) end
"""

# KEYS: watched tags, then parts; ARGV: stamp and floor of a part that is missing, seconds of a tag, the stamps that the
# watched tags had before the load. Returns the values of the parts, or nothing if a watched tag was bumped since.
_OPEN_PARTS = """
local watched, values = #ARGV - 3, {}
for i = 1, watched do
  local value = redis.call('GET', KEYS[i])
  if not value or string.match(value, '^[^|]*') ~= ARGV[i + 3] then return false end
end
for i = watched + 1, #KEYS do
  redis.call('SET', KEYS[i], ARGV[1] .. '|' .. ARGV[2], 'NX', 'EX', ARGV[3])
  values[i - watched] = redis.call('GETEX', KEYS[i], 'EX', ARGV[3])
end
return values
"""

# KEYS: lease; ARGV: token.
_GIVE_BACK = """
local lease = redis.call('GET', KEYS[1])
if lease and string.match(lease, '^[^|]*') == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


class Found(NamedTuple):
    """What L2 holds for a key, valid or not, and the values of its tags and parts; None for those that are missing."""

    entry: Entry | None
    values: Sequence[TagValue | None]

    def is_valid(self, need: Position | None) -> bool:
        """Whether the entry may be given to a reader who needs everything up to `need`."""
        return (
            self.entry is not None
            and self.entry.satisfies(need)
            and self.entry.stamps == tuple(value.stamp if value is not None else None for value in self.values)
        )

    def is_cleared(self) -> bool:
        """Whether the entry was cleared by hand, as far as one can tell."""
        stamps = self.entry.stamps if self.entry is not None else ()
        return len(stamps) != len(self.values) or not all(
            value is not None and value.is_generation_of(stamp)
            for stamp, value in zip(stamps, self.values, strict=True)
        )


class Shared(NamedTuple):
    """Redis's own figures: keys of every kind, bytes of memory and their limit (0: none), keys evicted so far."""

    keys: int
    used_bytes: int
    limit_bytes: int
    evicted: int


class Begun(NamedTuple):
    """A load that may begin: the values of its tags and its fence as they are before it, the lease if it is ours."""

    values: Sequence[TagValue]
    lease: str | None
    fence: bytes

    def is_exceeded(self, need: Position | None) -> bool:
        """Whether a reader needs more than any load by these tags includes."""
        return need is not None and all(value.floor != PRIMARY and value.floor < need.token() for value in self.values)


class Store:
    """The entries of one cache Redis. Every method raises redis.RedisError when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._reads = JoinedReads(redis)
        self._begin = redis.register_script(_BEGIN)
        self._finish = redis.register_script(_FINISH)
        self._open_parts = redis.register_script(_OPEN_PARTS)
        self._give_back = redis.register_script(_GIVE_BACK)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Entry)

    async def look_up(self, key: str, tags: Sequence[str]) -> Found:
        """What is stored: one MGET, and another for an entry that has parts."""
        answer = await self._reads.mget([_ENTRY + key, *map(tag_key, tags)])
        return await self._found(answer[0], [_parsed(value) for value in answer[1:]])

    async def begin(
        self, key: str, tags: Sequence[str], need: Position | None, *, watched: Sequence[str] = ()
    ) -> Begun | Found:
        """Begin a load, or get what another process has loaded meanwhile.

        Waits while another process has the lease, for at most as long as one lasts; then loads beside it. A reader
        who needs more than that one's load must include does not wait.
        """
        token = secrets.token_hex(8)
        deadline = time.monotonic() + LEASE_SECONDS
        pause, longest = _PAUSES
        while True:
            answer = await self._begin(
                keys=[_LEASE + key, _ENTRY + key, _fence_key(key), *map(tag_key, [*tags, *watched])],
                args=[fresh_stamp(), TAG_SECONDS, token, int(LEASE_SECONDS * 1000)],
            )
            begun = Begun([parse(value) for value in answer[3:]], token if answer[0] else None, answer[2])
            found = await self._found(answer[1], begun.values[: len(tags)])
            if found.is_valid(need):  # stored since it was looked up
                if begun.lease is not None:
                    await self.give_back(key, begun.lease)
                return found
            if begun.lease is not None or begun.is_exceeded(need) or time.monotonic() > deadline:
                return begun
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def open_parts(
        self, parts: Sequence[str], watched: Mapping[str, TagValue], as_of: Position | None
    ) -> list[str] | None:
        """The stamps that `parts` had before a load which found them; None if they cannot be told.

        They are read after it, but no part was bumped since, as a `watched` tag would have been bumped with it.
        `watched`: with the values from before the load, which is as of `as_of`.
        """
        values = await self._open_parts(
            keys=[tag_key(tag) for tag in (*watched, *parts)],
            args=[
                fresh_stamp(),
                as_of.token() if as_of is not None else PRIMARY,
                TAG_SECONDS,
                *(value.stamp for value in watched.values()),
            ],
        )
        return [parse(value).stamp for value in values] if values is not None else None

    async def finish(self, key: str, tags: Sequence[str], begun: Begun, entry: Entry, *, seconds: float) -> None:
        """Store what was loaded and end the load. `tags`: those that it began with, the watched ones as well.

        It lives for `seconds` or up to a tenth less, so that what was stored at one time does not end at one time.
        """
        encoded = self._encoder.encode(entry)
        value = _PLAIN + encoded if len(encoded) < COMPRESSED_BYTES else _COMPRESSED + zlib.compress(encoded, 1)
        lives = max(1, round(seconds * (1 - _JITTER * random.random())))  # noqa: S311 (jitter, not a secret)
        floor = entry.consistency.token() if entry.consistency is not None else ""
        await self._finish(
            keys=[_ENTRY + key, _LEASE + key, _fence_key(key), *map(tag_key, tags)],
            args=[value, lives, begun.lease or "", floor, TAG_SECONDS, begun.fence, *(v.stamp for v in begun.values)],
        )

    async def give_back(self, key: str, lease: str) -> None:
        """End a load that has brought nothing."""
        await self._give_back(keys=[_LEASE + key], args=[lease])

    async def state(self) -> Shared:
        """How much there is."""
        keys = await self._redis.dbsize()
        memory, stats = await self._redis.info("memory"), await self._redis.info("stats")
        return Shared(keys, memory["used_memory"], memory["maxmemory"], stats["evicted_keys"])

    async def remove(self, scope: str, beginnings: Sequence[str]) -> int:
        """Remove the entries of a scope (such as a UUID) whose keys begin like one of `beginnings`; how many.

        First the fence, so that what is stored from then on was loaded from then on; then all that is there.
        """
        await self._redis.set(_FENCE + scope, fresh_stamp(), ex=TAG_SECONDS)
        wanted = tuple((_ENTRY + beginning).encode() for beginning in beginnings)
        cursor, removed = 0, 0
        while True:
            found: tuple[int, list[bytes]] = await self._redis.scan(cursor, match=f"{_ENTRY}{scope}:*", count=_SCANNED)  # type: ignore[assignment]  # decode_responses is off
            cursor, matching = found[0], [key for key in found[1] if key.startswith(wanted)]
            if matching:
                removed += await self._redis.unlink(*matching)
            if cursor == 0:
                break
        # At the end, or another process could take an entry into its L1 again between the message and the removal.
        await self._redis.publish(CHANNEL, "\n".join(KEYS_BEGIN + beginning for beginning in beginnings))
        return removed

    async def _found(self, stored: bytes | None, values: Sequence[TagValue | None]) -> Found:
        entry = self._decoded(stored)
        if entry is not None and entry.parts:
            values = [*values, *map(_parsed, await self._reads.mget(map(tag_key, entry.parts)))]
        return Found(entry, values)

    def _decoded(self, value: bytes | None) -> Entry | None:
        if value is None:
            return None
        try:
            return self._decoder.decode(zlib.decompress(value[1:]) if value[:1] == _COMPRESSED else value[1:])
        except (msgspec.MsgspecError, zlib.error):
            return None  # of another version of this code; what is loaded now takes its place


def _parsed(value: Any) -> TagValue | None:
    return parse(value) if value is not None else None


def _fence_key(key: str) -> str:
    return _FENCE + key.partition(":")[0]

"""Tags: what makes a cached answer invalid.

A tag is a pair (stamp, floor). The stamp is fresh at every bump and decides validity: an entry holds the stamps of
its tags as they were before it was loaded and is valid only while they are unchanged. The floor is the highest
write-ahead log position behind the tag; a load reads only from servers that have replayed it.

The floor of a tag that was found missing (evicted, flushed) is unknown, also when a bump finds it missing: an earlier
bump may have had a higher position. It is `PRIMARY` then, and survives bumps until a load from the primary has settled
it.
"""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from libs.common.consistency import Position

CHANNEL = "cache:bumps"
TAG_SECONDS = 24 * 3600
PRIMARY = "~"
_PREFIX = "tag:"
_SEPARATOR = "|"

# KEYS: tags; ARGV: stamp, floor, seconds, channel, message
_BUMP = """
for _, key in ipairs(KEYS) do
  local floor = '~'
  local old = redis.call('GET', key)
  if old then
    floor = string.match(old, '|(.*)$')
    -- Redis compares by the locale's collation, so '~' is not left to it.
    if floor ~= '~' and floor < ARGV[2] then floor = ARGV[2] end
  end
  redis.call('SET', key, ARGV[1] .. '|' .. floor, 'EX', ARGV[3])
end
redis.call('PUBLISH', ARGV[4], ARGV[5])
"""

# KEYS: tags; ARGV: stamp, seconds. Gives every missing tag a stamp; its floor is unknown. Returns all values.
_OPEN = """
local values = {}
for i, key in ipairs(KEYS) do
  redis.call('SET', key, ARGV[1] .. '|~', 'NX', 'EX', ARGV[2])
  values[i] = redis.call('GET', key)
end
return values
"""

# KEYS: tags; ARGV: floor, seconds, then the stamp each tag must still have. Replaces unknown floors.
_SETTLE = """
for i, key in ipairs(KEYS) do
  local stamp = ARGV[i + 2]
  if redis.call('GET', key) == stamp .. '|~' then
    redis.call('SET', key, stamp .. '|' .. ARGV[1], 'EX', ARGV[2])
  end
end
"""


class TagValue(NamedTuple):
    """`floor` is a position's token or `PRIMARY`."""

    stamp: str
    floor: str


def ticket_tag(ticket_id: object) -> str:
    return f"ticket:{ticket_id}"


def tickets_tag(organization_id: object) -> str:
    """Lists of an organization's tickets."""
    return f"org:{organization_id}:tickets"


def search_tag(organization_id: object) -> str:
    """Search results of an organization."""
    return f"org:{organization_id}:search"


def key_of(tag: str) -> str:
    return _PREFIX + tag


def parse(value: bytes) -> TagValue:
    stamp, _, floor = value.decode().partition(_SEPARATOR)
    return TagValue(stamp, floor)


class Tags:
    """The tags of one cache Redis. Every method raises redis.RedisError when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._bump = redis.register_script(_BUMP)
        self._open = redis.register_script(_OPEN)
        self._settle = redis.register_script(_SETTLE)

    async def bump(self, tags: Sequence[str], position: Position) -> None:
        """Invalidate everything that carries one of `tags` and tell every process that keeps an L1."""
        if tags:
            await self._bump(
                keys=[key_of(tag) for tag in tags],
                args=[_fresh_stamp(), position.token(), TAG_SECONDS, CHANNEL, "\n".join(tags)],
            )

    async def open(self, tags: Sequence[str]) -> list[TagValue]:
        """The values of `tags`; those that are missing come into being, with an unknown floor."""
        values = await self._open(keys=[key_of(tag) for tag in tags], args=[_fresh_stamp(), TAG_SECONDS])
        return [parse(value) for value in values]

    async def settle(self, tags: Sequence[str], values: Sequence[TagValue], position: Position) -> None:
        """Give unknown floors the position that a load from the primary has reached, if nothing bumped them since."""
        unknown = [(tag, v.stamp) for tag, v in zip(tags, values, strict=True) if v.floor == PRIMARY]
        if unknown:
            await self._settle(
                keys=[key_of(tag) for tag, _stamp in unknown],
                args=[position.token(), TAG_SECONDS, *(stamp for _tag, stamp in unknown)],
            )


def _fresh_stamp() -> str:
    return secrets.token_hex(8)

"""Tags: what makes a cached answer invalid.

A tag is a pair (stamp, floor). The stamp is fresh at every bump and decides validity: an entry holds the stamps of
its tags as they were before it was loaded and is valid only while they are unchanged. The floor is the highest
write-ahead log position behind the tag; a load reads only from servers that have replayed it.

The floor of a tag that was found missing (evicted, flushed) is unknown, also when a bump finds it missing: an earlier
bump may have had a higher position. It is `PRIMARY` then, and survives bumps until a load from the primary has settled
it.

A stamp is a generation, and after a bump also what that bump has made of it. Clearing by hand begins a new generation:
what belongs to an earlier one is not even given while its source is away.
"""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from libs.common.consistency import Position

# Messages are lines: tags, and what else keys begin with, after KEYS_BEGIN.
CHANNEL = "cache:bumps"
KEYS_BEGIN = "keys:"
TAG_SECONDS = 24 * 3600
PRIMARY = "~"
_PREFIX = "tag:"
_SEPARATOR = "|"
_NOWHERE = Position(0, 0)

# KEYS: tags; ARGV: stamp, floor, seconds, channel, message, whether a generation ends, how many of the tags come into
# being when they are missing
_BUMP = """
for i, key in ipairs(KEYS) do
  local stamp, floor = ARGV[1], '~'
  local old = redis.call('GET', key)
  if old then
    if ARGV[6] == '0' then stamp = string.match(old, '^[^.|]*') .. '.' .. stamp end
    floor = string.match(old, '|(.*)$')
    -- Redis compares by the locale's collation, so '~' is not left to it.
    if floor ~= '~' and floor < ARGV[2] then floor = ARGV[2] end
  end
  if old or i <= tonumber(ARGV[7]) then redis.call('SET', key, stamp .. '|' .. floor, 'EX', ARGV[3]) end
end
redis.call('PUBLISH', ARGV[4], ARGV[5])
"""


class TagValue(NamedTuple):
    """`floor` is a position's token or `PRIMARY`."""

    stamp: str
    floor: str

    def is_generation_of(self, stamp: str) -> bool:
        """Whether nobody has cleared the tag since it had that stamp."""
        return _generation(stamp) == _generation(self.stamp)


def tag_key(tag: str) -> str:
    return _PREFIX + tag


def parse(value: bytes) -> TagValue:
    stamp, _, floor = value.decode().partition(_SEPARATOR)
    return TagValue(stamp, floor)


def _generation(stamp: str) -> str:
    return stamp.partition(".")[0]


class Tags:
    """The tags of one cache Redis. Every method raises redis.RedisError when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._bump = redis.register_script(_BUMP)

    async def bump(self, tags: Sequence[str], position: Position, *, parts: Sequence[str] = ()) -> None:
        """Invalidate everything that carries one of `tags` and tell every process that keeps an L1.

        The same goes for `parts`, which only answers carry that have found them. Those that are missing stay so: no
        valid entry has them.
        """
        if tags:
            await self._change(tags, position, parts=parts, ends_generation=False)

    async def clear(self, tags: Sequence[str]) -> None:
        """As `bump`, for good: what carries one of `tags` is not given again even while its source is away."""
        await self._change(tags, _NOWHERE, ends_generation=True)

    async def _change(
        self, tags: Sequence[str], position: Position, *, parts: Sequence[str] = (), ends_generation: bool
    ) -> None:
        told = [*tags, *parts]
        message = "\n".join(told)
        await self._bump(
            keys=[tag_key(tag) for tag in told],
            args=[fresh_stamp(), position.token(), TAG_SECONDS, CHANNEL, message, int(ends_generation), len(tags)],
        )


def fresh_stamp() -> str:
    return secrets.token_hex(8)

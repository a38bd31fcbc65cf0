"""Organization streams in the durable Redis: the truth of what was announced.

Each organization has a stream of items, an epoch and, for each ticket, the last version announced. One Lua script
checks the version and adds the item, so a duplicate or replay from Kafka adds nothing. An epoch names one life of a
stream: after a loss (FLUSHALL, a deleted key) the stream begins anew under another one. A position in a stream is
told to clients as `<epoch>:<entry id>`.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

STREAM_LENGTH = 10_000  # entries, approximate
# Longer than Kafka keeps an event: seven days of retention count from the end of a segment of up to seven days.
VERSION_SECONDS = 15 * 24 * 3600
BEGINNING = "0-0"
ANNOUNCED, DUPLICATE, ANNOUNCED_AFTER_GAP = 1, 0, 2

_POOL_CONNECTIONS = 16
_SOCKET_SECONDS = 2.0  # more than any BLOCK, less than a reader may be behind

# Add the items whose ticket version is new. KEYS: stream, epoch, then each event's ticket version;
# ARGV: the epoch a new stream gets, its length, seconds to keep a version, then each event's version and item.
ANNOUNCE = """
local epoch = redis.call('GET', KEYS[2])
if not epoch or redis.call('EXISTS', KEYS[1]) == 0 then
  epoch = ARGV[1]
  redis.call('SET', KEYS[2], epoch)
end
local outcomes = {}
for i = 3, #KEYS do
  local version = tonumber(ARGV[2 * i - 2])
  local last = tonumber(redis.call('GET', KEYS[i]) or 0)
  if version <= last then
    outcomes[i - 2] = 0
  else
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'epoch', epoch, 'item', ARGV[2 * i - 1])
    redis.call('SET', KEYS[i], version, 'EX', ARGV[3])
    outcomes[i - 2] = (last > 0 and version > last + 1) and 2 or 1
  end
end
return outcomes
"""


class Announcement(NamedTuple):
    """One event on its way into its organization's stream; `item` is the JSON object clients get, but `offset`."""

    organization_id: uuid.UUID
    ticket_id: uuid.UUID
    version: int
    item: bytes


class Position(NamedTuple):
    """A place in a stream; `epoch` is None when the stream does not exist yet."""

    epoch: str | None
    entry_id: str


class Entry(NamedTuple):
    """An announced item; `item` has its `offset`."""

    position: Position
    item: msgspec.Raw


def connect(url: str) -> Redis:
    """A client that fails fast: the loops that use it retry by themselves and know from where."""
    return Redis(
        connection_pool=BlockingConnectionPool.from_url(
            url,
            max_connections=_POOL_CONNECTIONS,
            timeout=_SOCKET_SECONDS,
            protocol=2,  # XREAD answers a list
            socket_timeout=_SOCKET_SECONDS,
            socket_connect_timeout=_SOCKET_SECONDS,
            retry=Retry(NoBackoff(), 1),  # one: a pooled connection may have died unnoticed
        )
    )


class Streams:
    """Every method raises redis.exceptions.RedisError or OSError when the durable Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._announce = redis.register_script(ANNOUNCE)

    async def announce(self, announcements: Sequence[Announcement]) -> list[int]:
        """Add what is new, in the given order, and tell each one's outcome, an organization's after another's.

        Safe to repeat after any failure.
        """
        by_organization: dict[uuid.UUID, list[Announcement]] = {}
        for announcement in announcements:
            by_organization.setdefault(announcement.organization_id, []).append(announcement)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for organization_id, group in by_organization.items():
                keys = [_stream_key(organization_id), _epoch_key(organization_id)]
                args: list[str | int | bytes] = [uuid.uuid4().hex[:12], STREAM_LENGTH, VERSION_SECONDS]
                for announcement in group:
                    keys.append(_version_key(organization_id, announcement.ticket_id))
                    args += (announcement.version, announcement.item)
                await self._announce(keys, args, client=pipeline)
            results: list[list[int]] = await pipeline.execute()
        return [outcome for outcomes in results for outcome in outcomes]

    async def tail(self, organization_id: uuid.UUID) -> Position:
        """Where the stream ends now."""
        entries: Any = await self._redis.xrevrange(_stream_key(organization_id), count=1)
        if not entries:
            return Position(None, BEGINNING)
        return _entry(*entries[0]).position

    async def epochs(self, organization_ids: Sequence[uuid.UUID]) -> list[str | None]:
        """The streams' present epochs; None for a stream that does not exist."""
        values: Any = await self._redis.mget([_epoch_key(organization_id) for organization_id in organization_ids])
        return [None if value is None else value.decode() for value in values]

    async def read(
        self, after: Mapping[uuid.UUID, Position], *, count: int, block_ms: int
    ) -> dict[uuid.UUID, list[Entry]]:
        """What was announced after the given positions, at most `count` an organization; waits for the first."""
        keys = {_stream_key(organization_id).encode(): organization_id for organization_id in after}
        positions = {_stream_key(organization_id): position.entry_id for organization_id, position in after.items()}
        found: Any = await self._redis.xread(positions, count=count, block=block_ms)  # type: ignore[arg-type]  # dict is invariant
        return {keys[key]: [_entry(*entry) for entry in entries] for key, entries in found}


def _entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    epoch, item = fields[b"epoch"], fields[b"item"]
    # Spliced, not decoded: a ticket is encoded once, where its event enters.
    raw = msgspec.Raw(b'{"offset":"%b:%b",%b' % (epoch, entry_id, item[1:]))
    return Entry(Position(epoch.decode(), entry_id.decode()), raw)


def _stream_key(organization_id: uuid.UUID) -> str:
    return f"realtime:{{{organization_id}}}:stream"


def _epoch_key(organization_id: uuid.UUID) -> str:
    return f"realtime:{{{organization_id}}}:epoch"


def _version_key(organization_id: uuid.UUID, ticket_id: uuid.UUID) -> str:
    return f"realtime:{{{organization_id}}}:version:{ticket_id}"

"""From the organization streams to the sockets of this instance.

Every instance has one reader. It reads on from the last entry it delivered, so whatever was announced while Redis
was away, or while a read failed, is delivered when Redis is back.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog
from redis.exceptions import RedisError

from services.notifier.metrics import DELIVERIES
from services.notifier.streams import BEGINNING, Entry, Position, Streams

BATCH_SECONDS = 0.1
MESSAGE_BYTES = 1_000_000
_READ_ENTRIES = 500
_BLOCK_MS = 100  # also the longest an organization's first socket waits to be read for
_EPOCH_CHECK_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
log = structlog.get_logger()

Emit = Callable[[uuid.UUID, Sequence[msgspec.Raw]], Awaitable[None]]


class _Feed:
    """One organization with sockets here; `position` is that of the last entry delivered to them."""

    def __init__(self, located: "asyncio.Task[Position]") -> None:
        self.located = located
        self.position: Position | None = None
        self.watchers = 0


class Delivery:
    """`emit` puts one message on the sockets of an organization."""

    def __init__(self, streams: Streams, emit: Emit) -> None:
        self._streams = streams
        self._emit = emit
        self._feeds: dict[uuid.UUID, _Feed] = {}
        self._watched = asyncio.Event()
        self._epochs_checked = 0.0

    async def watch(self, organization_id: uuid.UUID) -> None:
        """Deliver to one more socket of the organization: everything that is announced after this returns.

        Raises:
            redis.exceptions.RedisError, OSError: when the durable Redis does not answer; nothing is watched then.
        """
        feed = self._feeds.get(organization_id)
        if feed is None:
            feed = _Feed(asyncio.create_task(self._streams.tail(organization_id)))
            self._feeds[organization_id] = feed
        feed.watchers += 1
        try:
            # Shared by all who wait for it, so one waiter's cancellation must not end it.
            position = await asyncio.shield(feed.located)
        except BaseException:
            self._release(organization_id, feed)
            raise
        if feed.position is None:
            feed.position = position
            self._watched.set()

    def unwatch(self, organization_id: uuid.UUID) -> None:
        """Take back one `watch` that succeeded."""
        self._release(organization_id, self._feeds[organization_id])

    def _release(self, organization_id: uuid.UUID, feed: _Feed) -> None:
        feed.watchers -= 1
        if feed.watchers == 0:
            del self._feeds[organization_id]

    async def run(self) -> None:
        """Read and deliver until cancelled."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._read_and_deliver()
            except (RedisError, OSError) as error:
                log.warning("delivery_waits_for_redis", error=repr(error))
                self._epochs_checked = 0.0
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            else:
                pause = _FIRST_PAUSE_SECONDS

    async def _read_and_deliver(self) -> None:
        """One round: the first event of a quiet period goes at once, later ones gather for 100 ms."""
        feeds = {organization_id: feed for organization_id, feed in self._feeds.items() if feed.position}
        if not feeds:
            self._watched.clear()
            await self._watched.wait()
            return
        started = time.monotonic()
        if started - self._epochs_checked >= _EPOCH_CHECK_SECONDS:
            await self._check_epochs(feeds)
            self._epochs_checked = started
        found = await self._streams.read(
            {organization_id: feed.position for organization_id, feed in feeds.items() if feed.position},
            count=_READ_ENTRIES,
            block_ms=_BLOCK_MS,
        )
        if not found:
            return
        read_at = time.monotonic()
        for organization_id, entries in found.items():
            feed = feeds[organization_id]
            if self._feeds.get(organization_id) is feed:
                await self._deliver(organization_id, feed, entries)
        if all(len(entries) < _READ_ENTRIES for entries in found.values()):
            await asyncio.sleep(max(0.0, read_at + BATCH_SECONDS - time.monotonic()))

    async def _check_epochs(self, feeds: dict[uuid.UUID, _Feed]) -> None:
        """Notice streams that were lost, even where entry ids went backwards (a flush, then a slower clock)."""
        epochs = await self._streams.epochs(list(feeds))
        for (organization_id, feed), epoch in zip(feeds.items(), epochs, strict=True):
            if feed.position is not None and feed.position.epoch not in {None, epoch}:
                self._start_anew(organization_id, feed, epoch)

    async def _deliver(self, organization_id: uuid.UUID, feed: _Feed, entries: list[Entry]) -> None:
        known = feed.position.epoch if feed.position else None
        epoch = entries[0].position.epoch
        if known is not None and epoch != known:
            self._start_anew(organization_id, feed, epoch)
            return
        for batch in split(entries):
            await self._emit(organization_id, [entry.item for entry in batch])
            feed.position = batch[-1].position
            DELIVERIES.inc(len(batch) * feed.watchers)

    def _start_anew(self, organization_id: uuid.UUID, feed: _Feed, epoch: str | None) -> None:
        """A stream that was lost began anew under another epoch: nothing of it has been delivered."""
        log.warning("stream_began_anew", organization_id=str(organization_id), epoch=epoch)
        feed.position = Position(epoch, BEGINNING)


def split(entries: Sequence[Entry], limit: int = MESSAGE_BYTES) -> list[list[Entry]]:
    """Cut a batch into messages of at most `limit` bytes of items; a larger item travels alone."""
    batches: list[list[Entry]] = []
    size = limit
    for entry in entries:
        length = len(bytes(entry.item)) + 1
        if size + length > limit:
            batches.append([])
            size = 0
        batches[-1].append(entry)
        size += length
    return batches

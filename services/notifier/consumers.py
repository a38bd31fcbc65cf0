"""Kafka → organization streams. Offsets are committed only after the items stand in the durable Redis."""

import asyncio
import datetime as dt
import random
import uuid
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog
from redis.exceptions import RedisError

from libs.common.events import EventTypes, TicketEvent
from services.notifier.metrics import ANNOUNCED, VERSION_GAPS
from services.notifier.streams import ANNOUNCED_AFTER_GAP, DUPLICATE, Announcement, Streams

GROUP = "notifier"
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_json = msgspec.json.Encoder()
log = structlog.get_logger()


class _ItemHead(msgspec.Struct, frozen=True):
    """What stands before the event's own JSON in an item."""

    id: uuid.UUID
    type: str
    time: dt.datetime
    version: int
    consistency: str


class Announcer:
    """The effect of the consumer group `notifier`."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._announced = ANNOUNCED.labels("announced")
        self._duplicates = ANNOUNCED.labels("duplicate")

    async def apply(self, events: Sequence[TicketEvent]) -> None:
        """Announce a batch; waits for a Redis that is away (the consumer's watchdog bounds it)."""
        announcements = [HANDLERS[event.type](event) for event in events]
        if not announcements:
            return
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                outcomes = await self._streams.announce(announcements)
            except (RedisError, OSError) as error:
                log.warning("announce_waits_for_redis", events=len(events), error=repr(error))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            else:
                break
        duplicates = outcomes.count(DUPLICATE)
        self._announced.inc(len(outcomes) - duplicates)
        self._duplicates.inc(duplicates)
        VERSION_GAPS.inc(outcomes.count(ANNOUNCED_AFTER_GAP))


def on_ticket_event(event: TicketEvent) -> Announcement:
    """The item of an event that everybody in the organization may see."""
    head = _json.encode(_ItemHead(event.id, event.type, event.time, event.version, event.position.token()))
    item = head[:-1] + b"," + event.value.lstrip()[1:]
    return Announcement(event.organization_id, event.data.ticket.id, event.version, item)


HANDLERS: Mapping[str, Callable[[TicketEvent], Announcement]] = {
    EventTypes.CREATED.name: on_ticket_event,
    EventTypes.UPDATED.name: on_ticket_event,
    EventTypes.STATUS_CHANGED.name: on_ticket_event,
    EventTypes.ASSIGNED.name: on_ticket_event,
    EventTypes.COMMENTED.name: on_ticket_event,
}

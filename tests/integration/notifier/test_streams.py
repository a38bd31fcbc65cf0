"""The organization streams in a real Redis."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from infra.local.stack import Stack
from libs.common.events import TicketEvent
from services.notifier.consumers import on_ticket_event
from services.notifier.delivery import Delivery
from services.notifier.streams import (
    ANNOUNCED,
    ANNOUNCED_AFTER_GAP,
    BEGINNING,
    DUPLICATE,
    STREAM_LENGTH,
    Entry,
    Position,
    Streams,
    connect,
)
from tests.support.realtime import ticket_event, until


@pytest_asyncio.fixture(loop_scope="session")
async def redis(stack: Stack) -> AsyncIterator[Redis]:
    client = connect(stack.redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def streams(redis: Redis) -> Streams:
    return Streams(redis)


async def announce(streams: Streams, *events: TicketEvent) -> list[int]:
    return await streams.announce([on_ticket_event(event) for event in events])


async def entries(streams: Streams, organization_id: uuid.UUID) -> list[Entry]:
    found = await streams.read({organization_id: Position(None, BEGINNING)}, count=100_000, block_ms=1)
    return found.get(organization_id, [])


async def versions(streams: Streams, organization_id: uuid.UUID) -> list[int]:
    return [msgspec.json.decode(entry.item)["version"] for entry in await entries(streams, organization_id)]


async def test_announcing_again_adds_nothing(streams: Streams) -> None:
    organization_id, ticket_id = uuid.uuid4(), uuid.uuid4()
    events = [ticket_event(organization_id, ticket_id, version) for version in (1, 2, 3)]
    assert await announce(streams, *events) == [ANNOUNCED] * 3
    assert await announce(streams, *events) == [DUPLICATE] * 3
    assert await announce(streams, events[1]) == [DUPLICATE]
    assert await versions(streams, organization_id) == [1, 2, 3]


async def test_any_replay_leaves_each_ticket_in_order_and_once(streams: Streams) -> None:
    chance = random.Random(7)
    for _round in range(20):
        organization_id = uuid.uuid4()
        tickets = [uuid.uuid4() for _ in range(3)]
        events = {ticket: [ticket_event(organization_id, ticket, v) for v in range(1, 9)] for ticket in tickets}
        progress = dict.fromkeys(tickets, 0)
        while min(progress.values()) < 8:  # a consumer that goes on, or back, and then on again
            ticket = chance.choice(tickets)
            start = chance.randint(max(0, progress[ticket] - 4), progress[ticket])
            end = min(8, start + chance.randint(1, 4))
            await announce(streams, *events[ticket][start:end])
            progress[ticket] = max(progress[ticket], end)
        seen = [msgspec.json.decode(entry.item) for entry in await entries(streams, organization_id)]
        for ticket in tickets:
            assert [e["version"] for e in seen if e["ticket"]["id"] == str(ticket)] == list(range(1, 9))


async def test_a_gap_is_announced_and_told(streams: Streams) -> None:
    organization_id, ticket_id = uuid.uuid4(), uuid.uuid4()
    first, next_one, gap = (ticket_event(organization_id, ticket_id, version) for version in (4, 5, 7))
    assert await announce(streams, first, next_one) == [ANNOUNCED] * 2  # nothing is known before the first: no gap
    assert await announce(streams, gap) == [ANNOUNCED_AFTER_GAP]
    assert await versions(streams, organization_id) == [4, 5, 7]


async def test_outcomes_of_several_organizations_are_told_in_one_go(streams: Streams) -> None:
    first, second, ticket_id = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    await announce(streams, ticket_event(first, ticket_id, 1))
    batch = [ticket_event(organization_id, ticket_id, v) for v in (1, 2) for organization_id in (first, second)]
    assert sorted(await announce(streams, *batch)) == [DUPLICATE, ANNOUNCED, ANNOUNCED, ANNOUNCED]
    assert await versions(streams, first) == await versions(streams, second) == [1, 2]


async def test_offsets_are_epoch_and_entry_id(streams: Streams, redis: Redis) -> None:
    organization_id, ticket_id = uuid.uuid4(), uuid.uuid4()
    await announce(streams, ticket_event(organization_id, ticket_id, 1))
    (entry,) = await entries(streams, organization_id)
    assert await streams.tail(organization_id) == entry.position
    assert msgspec.json.decode(entry.item)["offset"] == f"{entry.position.epoch}:{entry.position.entry_id}"
    assert await streams.epochs([organization_id, uuid.uuid4()]) == [entry.position.epoch, None]


@pytest.mark.parametrize("lost", ["stream", "epoch"])
async def test_a_lost_stream_begins_anew_under_another_epoch(streams: Streams, redis: Redis, lost: str) -> None:
    organization_id, ticket_id = uuid.uuid4(), uuid.uuid4()
    await announce(streams, ticket_event(organization_id, ticket_id, 1))
    before = await streams.tail(organization_id)
    await redis.delete(f"realtime:{{{organization_id}}}:{lost}")
    await announce(streams, ticket_event(organization_id, ticket_id, 2))
    after = await streams.tail(organization_id)
    assert after.epoch != before.epoch
    assert await streams.epochs([organization_id]) == [after.epoch]


async def test_streams_and_versions_do_not_grow_for_ever(streams: Streams, redis: Redis) -> None:
    organization_id = uuid.uuid4()
    for start in range(0, 12_000, 1000):
        tickets = [uuid.UUID(int=number) for number in range(start, start + 1000)]
        await announce(streams, *(ticket_event(organization_id, ticket, 1) for ticket in tickets))
    length = await redis.xlen(f"realtime:{{{organization_id}}}:stream")
    assert STREAM_LENGTH <= length < STREAM_LENGTH + 200
    assert await redis.ttl(f"realtime:{{{organization_id}}}:version:{tickets[0]}") > 14 * 24 * 3600


async def test_delivery_starts_anew_when_entry_ids_went_backwards(streams: Streams, redis: Redis) -> None:
    """After a flush and with a slower clock, nothing would ever come after the last id."""
    organization_id, ticket_id = uuid.uuid4(), uuid.uuid4()
    delivered: list[int] = []

    async def emit(_organization_id: uuid.UUID, items: list[msgspec.Raw]) -> None:
        delivered.extend(msgspec.json.decode(item)["version"] for item in items)

    delivery = Delivery(streams, emit)  # type: ignore[arg-type]  # a list is a sequence
    running = asyncio.create_task(delivery.run())
    try:
        await delivery.watch(organization_id)
        await announce(streams, ticket_event(organization_id, ticket_id, 1))
        await until(lambda: delivered == [1])
        stream, epoch = (f"realtime:{{{organization_id}}}:{name}" for name in ("stream", "epoch"))
        async with redis.pipeline() as pipeline:
            pipeline.delete(stream)
            pipeline.set(epoch, "another")
            pipeline.xadd(stream, {"epoch": "another", "item": '{"version":2}'}, id="5-0")
            await pipeline.execute()
        await until(lambda: delivered == [1, 2])
    finally:
        running.cancel()


async def test_a_watch_that_fails_leaves_nothing_behind(stack: Stack) -> None:
    unreachable = connect("redis://127.0.0.1:1/0")
    delivery = Delivery(Streams(unreachable), emit=None)  # type: ignore[arg-type]  # never called
    organization_id = uuid.uuid4()
    results = await asyncio.gather(*(delivery.watch(organization_id) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, OSError | Exception) for result in results)
    assert not delivery._feeds
    await unreachable.aclose()

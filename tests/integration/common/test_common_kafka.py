"""A consumer group on a real Kafka: dead letters, repetition, rebalances."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest_asyncio

from infra.local.stack import Stack
from libs.common import background
from libs.common.events import TicketEvent, encode_data, headers
from libs.common.kafka import EventConsumer, EventsRejected, discard, ensure_topic, producer
from tests.support.clients import headers_of, read_topic
from tests.support.realtime import ticket_event, until

PARTITIONS = 3
ORGANIZATION = uuid.uuid4()
Message = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]


@pytest_asyncio.fixture(loop_scope="session")
async def own_topic(stack: Stack) -> AsyncIterator[str]:
    name = f"test.{uuid.uuid4().hex[:8]}"
    await ensure_topic(stack.kafka_bootstrap_servers, partitions=PARTITIONS, replication=1, name=name)
    yield name


def message_of(event: TicketEvent) -> Message:
    ticket = event.data.ticket
    made = headers(
        event_id=event.id,
        event_type=event.type,
        time=event.time,
        ticket_id=ticket.id,
        organization_id=event.organization_id,
        version=event.version,
        position=event.position,
        traceparent=None,
    )
    return str(ticket.id).encode(), encode_data(event.data), list(made)


def events_of(tickets: int, versions: int) -> list[TicketEvent]:
    ids = [uuid.uuid4() for _ in range(tickets)]
    return [ticket_event(ORGANIZATION, key, version) for version in range(1, versions + 1) for key in ids]


async def send(stack: Stack, topic: str, messages: Sequence[Message]) -> None:
    sender = producer(stack.kafka_bootstrap_servers)
    await sender.start()
    try:
        sent = [await sender.send(topic, key=key, value=value, headers=more) for key, value, more in messages]
        await asyncio.gather(*sent)
    finally:
        await discard(sender)


class Applied:
    """An effect that remembers."""

    def __init__(self) -> None:
        self.events: list[TicketEvent] = []

    async def __call__(self, events: Sequence[TicketEvent]) -> None:
        self.events += events

    @property
    def ids(self) -> list[uuid.UUID]:
        return [event.id for event in self.events]


def consumer(stack: Stack, topic: str, apply: object, group: str = "group") -> EventConsumer:
    return EventConsumer(stack.kafka_bootstrap_servers, group=group, apply=apply, topic=topic)  # type: ignore[arg-type]


async def test_poison_of_every_kind_goes_to_the_dead_letters_and_the_rest_is_applied(
    stack: Stack, own_topic: str
) -> None:
    good = events_of(5, 2)
    key, value, complete = message_of(good[0])
    nulled: list[tuple[str, bytes | None]] = [(name, None) for name, _content in complete]
    poison: list[Message] = [
        (key, b"not json", complete),
        (key, value, []),
        (key, value, nulled),
        (key, None, complete),
        (b"\xff", b"", [("x", b"\xff\xfe")]),
        (None, b"", []),
    ]
    half = len(good) // 2
    messages = [*map(message_of, good[:half]), *poison, *map(message_of, good[half:])]
    await send(stack, own_topic, messages)
    applied = Applied()
    async with background.running("test", consumer(stack, own_topic, applied).run):
        await until(lambda: len(applied.events) >= len(good))
    assert sorted(applied.ids) == sorted(event.id for event in good)
    letters = await read_topic(stack, f"{own_topic}.group.dlq")
    assert sorted((m.key or b"", m.value or b"") for m in letters) == sorted(
        (k or b"", v or b"") for k, v, _h in poison
    )
    for letter in letters:
        found = dict(letter.headers)
        assert found["dlq_topic"] == own_topic.encode()
        assert found["dlq_reason"]
        assert int(found["dlq_offset"]) >= 0


async def test_a_thousand_dead_letters_do_not_stop_the_group(stack: Stack, own_topic: str) -> None:
    (good,) = events_of(1, 1)
    key, value, complete = message_of(good)
    await send(stack, own_topic, [(key, b"%d" % n, []) for n in range(1000)])
    await send(stack, own_topic, [(key, value, complete)])
    applied = Applied()
    async with background.running("test", consumer(stack, own_topic, applied).run):
        await until(lambda: len(applied.events) == 1)
    letters = await read_topic(stack, f"{own_topic}.group.dlq")
    assert [int(letter.value) for letter in letters] == list(range(1000))


async def test_an_event_that_the_effect_rejects_goes_to_the_dead_letters(stack: Stack, own_topic: str) -> None:
    events = events_of(4, 1)
    applied = Applied()

    async def apply(batch: Sequence[TicketEvent]) -> None:
        for event in batch:
            if event.id == events[1].id:
                raise EventsRejected((event, "never"))
        await applied(batch)

    await send(stack, own_topic, [message_of(event) for event in events])
    async with background.running("test", consumer(stack, own_topic, apply).run):
        await until(lambda: len(applied.events) >= 3)
    assert sorted(applied.ids) == sorted(event.id for event in events if event is not events[1])
    (letter,) = await read_topic(stack, f"{own_topic}.group.dlq")
    assert headers_of(letter)["dlq_reason"] == "never"
    assert letter.value == encode_data(events[1].data)


async def test_a_message_as_large_as_the_topic_takes_fits_into_the_dead_letters(stack: Stack, own_topic: str) -> None:
    size = 2 * 1024 * 1024 - 100
    await send(stack, own_topic, [(b"k", b"\x00" * size, [])])
    (good,) = events_of(1, 1)
    applied = Applied()
    async with background.running("test", consumer(stack, own_topic, applied).run):
        await send(stack, own_topic, [message_of(good)])
        await until(lambda: len(applied.events) == 1)
        letters: list[Any] = []
        while not letters:
            letters = await read_topic(stack, f"{own_topic}.group.dlq")
    assert [len(letter.value) for letter in letters] == [size]


async def test_what_fails_is_applied_again_and_nothing_is_acknowledged_before(stack: Stack, own_topic: str) -> None:
    events = events_of(3, 3)
    applied = Applied()
    failures = 3

    async def apply(batch: Sequence[TicketEvent]) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise ConnectionError("the database is away")
        await applied(batch)

    await send(stack, own_topic, [message_of(event) for event in events])
    async with background.running("test", consumer(stack, own_topic, apply).run):
        await until(lambda: len(applied.events) >= len(events))
    assert sorted(applied.ids) == sorted(event.id for event in events)


async def test_members_that_come_and_go_lose_nothing_and_keep_each_tickets_order(stack: Stack, own_topic: str) -> None:
    events = events_of(12, 60)
    applied = Applied()

    async def apply(batch: Sequence[TicketEvent]) -> None:
        await asyncio.sleep(0.01)  # an effect takes a while, so that rebalances find work in flight
        await applied(batch)

    async def write() -> None:
        for start in range(0, len(events), 60):
            await send(stack, own_topic, [message_of(event) for event in events[start : start + 60]])

    async with background.running("first", consumer(stack, own_topic, apply).run):
        writing = asyncio.create_task(write())
        async with background.running("second", consumer(stack, own_topic, apply).run):
            await until(lambda: len(applied.events) > 200)
        await writing
        await until(lambda: set(applied.ids) == {event.id for event in events})
    first: dict[uuid.UUID, list[int]] = {}
    for event in applied.events:
        versions = first.setdefault(event.data.ticket.id, [])
        if event.version not in versions:
            versions.append(event.version)
    assert all(versions == list(range(1, 61)) for versions in first.values())

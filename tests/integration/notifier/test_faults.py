"""Nothing is lost and nothing doubled while servers and the notifier itself are killed."""

import asyncio
import contextlib
import json
import signal
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from infra.local.stack import Stack
from libs.common.events import TicketEvent
from services.notifier.streams import connect
from tests.support.processes import TestedService, running_service
from tests.support.realtime import (
    Listener,
    listening,
    principal,
    publish,
    realtime_token,
    ticket_event,
    until,
)

Fault = Callable[[Stack], Awaitable[None]]


async def kill_redis(stack: Stack) -> None:
    stack.kill("redis")
    await stack.wait_until_dead("redis")
    await asyncio.sleep(2)
    await stack.restart("redis")


async def freeze_redis(stack: Stack) -> None:
    stack.pause("redis")
    await asyncio.sleep(4)
    stack.resume("redis")


async def kill_connections(stack: Stack) -> None:
    redis = connect(stack.redis_url)
    for _ in range(5):
        await redis.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.3)
    await redis.aclose()


async def flush_scripts(stack: Stack) -> None:
    redis = connect(stack.redis_url)
    await redis.script_flush()
    await redis.aclose()


@contextlib.asynccontextmanager
async def publishing(stack: Stack, organization_id: uuid.UUID) -> AsyncIterator[list[TicketEvent]]:
    """Up to 50 events a second about five tickets, from a second before the block until a second after it."""
    published: list[TicketEvent] = []
    tickets = [uuid.uuid4() for _ in range(5)]
    done = asyncio.Event()

    async def run() -> None:
        version = 0
        while not done.is_set():
            version += 1
            events = [ticket_event(organization_id, ticket_id, version) for ticket_id in tickets]
            await publish(stack, events)
            published.extend(events)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(run())
    await asyncio.sleep(1)
    yield published
    await asyncio.sleep(1)
    done.set()
    await task


def assert_complete(listener: Listener, published: list[TicketEvent]) -> None:
    """Every event exactly once, each ticket's in the order of its versions."""
    counts = Counter(listener.event_ids)
    assert not {event.id for event in published} - {uuid.UUID(found) for found in counts}
    assert max(counts.values()) == 1
    for ticket_id in {event.data.ticket.id for event in published}:
        versions = [item["version"] for item in listener.items if item["ticket"]["id"] == str(ticket_id)]
        assert versions == sorted(versions)


@pytest.mark.parametrize("fault", [kill_redis, freeze_redis, kill_connections, flush_scripts])
async def test_trouble_with_redis_loses_and_doubles_nothing_on_any_instance(
    stack: Stack, notifier: TestedService, tmp_path: Path, fault: Fault
) -> None:
    organization_id = uuid.uuid4()
    token = realtime_token(stack, principal(organization_id))
    async with (
        running_service(stack, "notifier", tmp_path / "log") as another,
        listening(notifier.url, token) as first,
        listening(another.url, token) as second,
    ):
        async with publishing(stack, organization_id) as published:
            await fault(stack)
        ended = time.monotonic()
        for listener in (first, second):
            await until(lambda listener=listener: len(listener.items) >= len(published), seconds=30)  # type: ignore[misc]
        print(f"{len(published)} events, caught up {time.monotonic() - ended:.2f} s after the last was published")
        await asyncio.sleep(0.5)
        assert_complete(first, published)
        assert_complete(second, published)
        assert not first.disconnected.is_set()


async def test_after_a_flush_events_go_on_under_another_epoch(stack: Stack, notifier: TestedService) -> None:
    organization_id, ticket_id = uuid.uuid4(), uuid.uuid4()
    redis = connect(stack.redis_url)
    async with listening(notifier.url, realtime_token(stack, principal(organization_id))) as listener:
        await publish(stack, [ticket_event(organization_id, ticket_id, version) for version in (1, 2)])
        await until(lambda: len(listener.items) == 2)
        await redis.flushall()
        await publish(stack, [ticket_event(organization_id, ticket_id, version) for version in (3, 4)])
        await until(lambda: len(listener.items) == 4)
    assert [item["version"] for item in listener.items] == [1, 2, 3, 4]
    epochs = [item["offset"].partition(":")[0] for item in listener.items]
    assert epochs[0] == epochs[1] != epochs[2] == epochs[3]
    await redis.aclose()


@pytest.mark.parametrize("point", ["before", "after"])
async def test_a_notifier_killed_between_consuming_and_committing_neither_loses_nor_doubles(
    stack: Stack, notifier: TestedService, tmp_path: Path, point: str
) -> None:
    """Killed before or after the announcement; in both cases the offsets are not committed."""
    await notifier.stop()  # the one that dies has the consumer group for itself
    organization_id, ticket_id = uuid.uuid4(), uuid.uuid4()
    events = [ticket_event(organization_id, ticket_id, version) for version in range(1, 21)]
    script = ("-m", "tests.support.dying_notifier", point)
    async with running_service(stack, "notifier", tmp_path / "dying", script=script) as dying:
        await publish(stack, events[:10])
        await until(lambda: not dying.alive, seconds=60)
    await notifier.start()
    async with listening(notifier.url, realtime_token(stack, principal(organization_id))) as listener:
        await publish(stack, events[10:])
        await until(lambda: str(events[-1].id) in listener.event_ids, seconds=60)
    redis = connect(stack.redis_url)
    stored: Any = await redis.xrange(f"realtime:{{{organization_id}}}:stream")
    await redis.aclose()
    ids = [fields[b"item"] for _, fields in stored]
    assert [str(event.id).encode() in item for event, item in zip(events, ids, strict=True)] == [True] * 20


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_client_reconnects_by_itself_after_a_shutdown_in_good_order(
    stack: Stack, topic: str, tmp_path: Path, transport: str
) -> None:
    organization_id = uuid.uuid4()
    token = realtime_token(stack, principal(organization_id))
    async with (
        running_service(stack, "notifier", tmp_path / "log") as notifier,
        listening(notifier.url, token, transports=(transport,)) as listener,
    ):
        await publish(stack, [ticket_event(organization_id, uuid.uuid4(), 1)])
        await until(lambda: len(listener.items) == 1)
        started = time.monotonic()
        await notifier.stop()
        print(f"stopped in {time.monotonic() - started:.2f} s")
        events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
        assert events[-1] == "stopped"  # by itself, before anybody's patience ended
        await notifier.start()
        await until(lambda: listener.client.connected)
        assert await listener.subscribe() == {"ok": True, "room": "organization"}
        await publish(stack, [ticket_event(organization_id, uuid.uuid4(), 1)])
        await until(lambda: len(listener.items) == 2)
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_a_start_without_redis_and_kafka_serves_when_they_are_there(stack: Stack, tmp_path: Path) -> None:
    organization_id = uuid.uuid4()
    token = realtime_token(stack, principal(organization_id))
    stack.kill("redis")
    stack.kill("kafka", signal.SIGTERM)
    await stack.wait_until_dead("redis")
    await stack.wait_until_dead("kafka")
    try:
        async with running_service(stack, "notifier", tmp_path / "log") as notifier:
            listener = Listener()
            with contextlib.suppress(Exception):
                await listener.client.connect(notifier.url, auth={"token": token}, transports=["websocket"])
            assert not listener.client.connected
            await listener.client.shutdown()
            await stack.restart("redis")
            await stack.restart("kafka")
            async with asyncio.timeout(30):
                while not listener.client.connected:
                    with contextlib.suppress(Exception):
                        await listener.client.connect(notifier.url, auth={"token": token}, transports=["websocket"])
            assert (await listener.subscribe())["ok"] is True
            await publish(stack, [ticket_event(organization_id, uuid.uuid4(), 1)])
            await until(lambda: len(listener.items) == 1)
            await listener.client.shutdown()
    finally:
        for name in ("redis", "kafka"):
            if not stack.parts[name].alive:
                await stack.restart(name)

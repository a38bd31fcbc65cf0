"""The relay between a real PostgreSQL and a real Kafka: nothing is lost, no version comes after a newer one."""

import asyncio
import contextlib
import datetime as dt
import os
import random
import signal
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from infra.local.stack import Stack
from libs.common import background
from libs.common.events import TOPIC, decode
from libs.common.identity import Principal
from libs.common.metrics import BACKGROUND_FAILURES
from libs.common.models import (
    BODY_BYTES,
    TEXT_LENGTH,
    TITLE_LENGTH,
    BulkCreate,
    BulkReport,
    NewComment,
    NewTicket,
    Ticket,
    TicketChanges,
)
from libs.common.postgres import create_pool
from services.tickets import relay as relay_module
from services.tickets import store_relay
from services.tickets.bulk import create_tickets
from services.tickets.comments import add_comment
from services.tickets.database import RELAY_ROLE, Database
from services.tickets.relay import LEASE, Relay
from services.tickets.tickets import create_ticket, update_ticket
from tests.support.clients import read_topic
from tests.support.tickets import (
    RelayProcess,
    TicketsDatabase,
    eventually,
    first_times,
    gauge,
    published,
    running_relay,
    tickets_database,
)

SHARDS = 64.0


@pytest_asyncio.fixture(loop_scope="session")
async def outbox(stack: Stack, topic: str) -> AsyncIterator[TicketsDatabase]:
    """A database with leases of its own."""
    async with tickets_database(stack) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def database(outbox: TicketsDatabase) -> AsyncIterator[Database]:
    async with Database.open(outbox.settings()) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def principal(outbox: TicketsDatabase) -> Principal:
    (made,) = await outbox.organization()
    return made


async def new_tickets(database: Database, principal: Principal, count: int) -> list[str]:
    rows = [msgspec.Raw(msgspec.json.encode({"title": f"Ticket {n}"})) for n in range(count)]
    made: list[str] = []
    for start in range(0, count, 500):
        reply, _position = await create_tickets(database, principal, BulkCreate(rows[start : start + 500]))
        made += [str(result.id) for result in msgspec.json.decode(reply.body, type=BulkReport).results]
    return made


async def write_versions(database: Database, principal: Principal, ticket_id: str, versions: Sequence[int]) -> None:
    """Comments and changes that make these versions; safe beside other writers of other tickets."""
    key = uuid.UUID(ticket_id)
    for version in versions:
        if version % 3 == 0:
            await add_comment(database, principal, key, NewComment(f"{version}"))
        else:
            changes = TicketChanges(title=f"Version {version}")
            await update_ticket(database, principal, key, changes, expected_version=version - 1)


async def drained(outbox: TicketsDatabase) -> bool:
    return await rows_in(outbox) == 0


async def rows_in(outbox: TicketsDatabase) -> int:
    return int(await outbox.superuser.fetchval("SELECT count(*) FROM outbox"))


def owns(relay: RelayProcess, shards: float) -> object:
    async def condition() -> bool:
        return await gauge(relay, "relay_shards_owned") == shards

    return condition


def assert_complete(versions: dict[str, list[int]], last: int) -> None:
    """Every version arrived, and for the first time in its turn; replays do not count."""
    for ticket_id, found in versions.items():
        assert first_times(found) == list(range(1, last + 1)), ticket_id


async def test_two_relays_keep_each_tickets_order_under_sixteen_writers(
    stack: Stack, outbox: TicketsDatabase, database: Database, principal: Principal, tmp_path: Path
) -> None:
    async with running_relay(outbox, tmp_path / "one.log") as one, running_relay(outbox, tmp_path / "two.log") as two:
        await eventually(owns(one, SHARDS / 2))
        await eventually(owns(two, SHARDS / 2))
        tickets = await new_tickets(database, principal, 16)
        await asyncio.gather(*(write_versions(database, principal, t, range(2, 26)) for t in tickets))
        await eventually(lambda: drained(outbox))
        assert await gauge(one, "relay_published_total") > 0
        assert await gauge(two, "relay_published_total") > 0
    versions = await published(stack, tickets)
    assert_complete(versions, 25)
    assert all(len(found) == 25 for found in versions.values())  # without a fault nothing is published twice


async def test_a_relay_that_is_killed_in_the_middle_loses_nothing(
    stack: Stack, outbox: TicketsDatabase, database: Database, principal: Principal, tmp_path: Path
) -> None:
    tickets = await new_tickets(database, principal, 40)
    await asyncio.gather(*(write_versions(database, principal, t, range(2, 11)) for t in tickets))
    many = await new_tickets(database, principal, 2000)
    chance = random.Random(3)
    for number in range(2):
        async with running_relay(outbox, tmp_path / f"{number}.log") as relay:
            await eventually(owns(relay, SHARDS))
            started = await rows_in(outbox)
            goal = started - chance.randint(1, 400)
            while await rows_in(outbox) > goal:
                await asyncio.sleep(0)
            relay.kill()
        assert await rows_in(outbox) > 0
    async with running_relay(outbox, tmp_path / "last.log"):
        await eventually(lambda: drained(outbox))
    versions = await published(stack, [*tickets, *many])
    assert_complete({ticket: versions[ticket] for ticket in tickets}, 10)
    assert_complete({ticket: versions[ticket] for ticket in many}, 1)


async def test_a_relay_that_slept_through_its_lease_only_replays(
    stack: Stack, outbox: TicketsDatabase, database: Database, principal: Principal, tmp_path: Path
) -> None:
    """It is stopped with rows in its hands, another takes over, and then it goes on where it was."""
    async with running_relay(outbox, tmp_path / "sleeper.log") as sleeper:
        await eventually(owns(sleeper, SHARDS))
        tickets = await new_tickets(database, principal, 300)
        before = await rows_in(outbox)
        writes = asyncio.gather(*(write_versions(database, principal, t, range(2, 6)) for t in tickets[:60]))
        while await gauge(sleeper, "relay_published_total") == 0 and await rows_in(outbox) >= before:
            await asyncio.sleep(0)
        _signal(sleeper, signal.SIGSTOP)
        await writes
        async with running_relay(outbox, tmp_path / "other.log") as other:
            await eventually(owns(other, SHARDS))
            await eventually(lambda: drained(outbox))
            # What is written from now on waits while the sleeper wakes up: it must not take that away unsent.
            _signal(other, signal.SIGSTOP)
            await asyncio.gather(*(write_versions(database, principal, t, range(6, 8)) for t in tickets[:60]))
            waiting = await rows_in(outbox)
            _signal(sleeper, signal.SIGCONT)
            await eventually(lambda: drained(outbox))  # once the other's lease has ended, it is the sleeper's turn
            _signal(other, signal.SIGCONT)
            assert waiting == 120
    versions = await published(stack, tickets)
    assert_complete({ticket: versions[ticket] for ticket in tickets[:60]}, 7)
    assert_complete({ticket: versions[ticket] for ticket in tickets[60:]}, 1)


def _signal(relay: RelayProcess, number: signal.Signals) -> None:
    assert relay.process is not None
    os.kill(relay.process.pid, number)


async def test_a_killed_relays_shards_are_taken_over_within_seconds(
    stack: Stack, outbox: TicketsDatabase, database: Database, principal: Principal, tmp_path: Path
) -> None:
    async with running_relay(outbox, tmp_path / "one.log") as one, running_relay(outbox, tmp_path / "two.log") as two:
        await eventually(owns(one, SHARDS / 2))
        await eventually(owns(two, SHARDS / 2))
        two.kill()
        tickets = await new_tickets(database, principal, 200)  # of all shards
        await eventually(lambda: drained(outbox), seconds=20)  # a lease is 6 s
        await eventually(owns(one, SHARDS))
    assert_complete(await published(stack, tickets), 1)


async def test_only_the_owner_in_its_epoch_deletes(
    outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    await new_tickets(database, principal, 200)
    old, new = uuid.uuid4(), uuid.uuid4()
    pool = await create_pool(outbox.environment["TICKETS_DATABASE_URL"], role=RELAY_ROLE, service="test", minimum=1)
    async with pool, pool.acquire() as connection:
        mine = await store_relay.claim_leases(connection, old, dt.timedelta(seconds=0), 64)
        rows = await store_relay.select_rows(connection, list(mine), 500)
        positions = [row["position"] for row in rows]
        assert len(mine) == 64
        assert len(rows) == 200
        half = await store_relay.claim_leases(connection, new, LEASE, 32)  # the lease of 0 s has ended
        assert len(half) == 32
        assert await store_relay.claim_leases(connection, uuid.uuid4(), LEASE, 0) == {}
        await store_relay.delete_rows(connection, old, mine, positions)
        left = await store_relay.select_rows(connection, list(mine), 500)
        assert {row["shard"] for row in left} <= set(half)
        assert {row["position"] for row in left} == {row["position"] for row in rows if row["shard"] in half}
        # The same owner in another epoch is another owner.
        await store_relay.delete_rows(connection, new, {shard: epoch - 1 for shard, epoch in half.items()}, positions)
        assert len(await store_relay.select_rows(connection, list(mine), 500)) == len(left) > 0
        await store_relay.delete_rows(connection, new, half, positions)
        assert await store_relay.select_rows(connection, list(mine), 500) == []


async def test_writes_go_on_while_kafka_is_away_and_drain_afterwards(
    stack: Stack, outbox: TicketsDatabase, database: Database, principal: Principal, tmp_path: Path
) -> None:
    async with running_relay(outbox, tmp_path / "relay.log") as relay:
        await eventually(owns(relay, SHARDS))
        tickets = await new_tickets(database, principal, 20)
        await eventually(lambda: drained(outbox))
        kafka = stack.parts["kafka"]
        await kafka.stop()
        try:
            await asyncio.gather(*(write_versions(database, principal, t, range(2, 5)) for t in tickets))

            async def told() -> bool:
                waiting = await gauge(relay, "outbox_rows")
                return waiting == 60 and await gauge(relay, "outbox_oldest_age_seconds") > 8

            await eventually(told)
            async with running_relay(outbox, tmp_path / "late.log") as late:  # it starts while Kafka is away

                async def late_told() -> bool:
                    return await gauge(late, "outbox_rows") == 60

                await eventually(late_told)
        finally:
            await kafka.start()
        await eventually(lambda: drained(outbox), seconds=60)

        async def empty() -> bool:
            return await gauge(relay, "outbox_rows") == 0 == await gauge(relay, "outbox_oldest_age_seconds")

        await eventually(empty)
    assert_complete(await published(stack, tickets), 4)


async def test_a_topic_with_another_number_of_partitions_is_refused(
    outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    relay = Relay(outbox.settings(TICKETS_TOPIC_PARTITIONS="5"))
    await new_tickets(database, principal, 3)
    with pytest.raises(RuntimeError, match="3 partitions and 5 are configured"):
        await relay.run()
    assert await rows_in(outbox) == 3
    assert relay_module.OUTBOX_ROWS._value.get() == 3
    assert await outbox.superuser.fetchval("SELECT count(owner) FROM relay_shards") == 0


@contextlib.asynccontextmanager
async def message_limit(stack: Stack, limit: int) -> AsyncIterator[None]:
    """The topic takes messages of at most `limit` bytes."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap_servers)
    await admin.start()

    async def set_limit(value: int) -> None:
        configs = {"max.message.bytes": str(value), "retention.ms": str(7 * 24 * 3600 * 1000)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, TOPIC, configs)])

    try:
        await set_limit(limit)
        yield
    finally:
        await set_limit(2 * 1024 * 1024)
        await admin.close()


async def test_a_version_that_kafka_refuses_is_not_overtaken_by_the_next(
    stack: Stack, outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    noise = random.Random(1).randbytes(25_000).hex()
    reply, _position = await create_ticket(database, principal, NewTicket(title="Large", description=noise))
    large = msgspec.json.decode(reply.body, type=Ticket)
    changes = TicketChanges(description="Small again")
    await update_ticket(database, principal, large.id, changes, expected_version=1)
    small = await new_tickets(database, principal, 10)
    refused = relay_module.PUBLISH_ERRORS._value
    async with message_limit(stack, 10_000):
        before = refused.get()
        async with background.running("relay", Relay(outbox.settings()).run):

            async def tried() -> bool:
                return bool(refused.get() >= before + 3) and await rows_in(outbox) == 2

            await eventually(tried)
        assert (await published(stack, [str(large.id)]))[str(large.id)] == []
    async with background.running("relay", Relay(outbox.settings()).run):
        await eventually(lambda: drained(outbox))
    assert_complete(await published(stack, [str(large.id)]), 2)
    assert_complete(await published(stack, small), 1)


async def test_the_largest_event_that_the_api_takes_fits_into_kafka(
    stack: Stack, outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    """Every field as long as it may be, of the character that is longest in JSON, and random, so that it stays long."""
    chance = random.Random(1)

    def text(length: int) -> str:
        return "x" + "".join(map(chr, chance.choices(range(1, 8), k=length - 1)))

    new = NewTicket(
        title=text(TITLE_LENGTH),
        description=text(TEXT_LENGTH),
        external_id=text(200),
        fields={f"{number:02}{text(62)}": text(1000) for number in range(50)},
    )
    request = msgspec.json.encode(new)
    assert len(request) < BODY_BYTES
    assert msgspec.json.decode(request, type=NewTicket) == new
    await create_ticket(database, principal, new)
    ticket = await outbox.superuser.fetchval("SELECT id FROM tickets")
    await add_comment(database, principal, ticket, NewComment(text(TEXT_LENGTH)))
    assert await outbox.superuser.fetchval("SELECT max(length(data)) FROM outbox") > 1_100_000
    async with background.running("relay", Relay(outbox.settings()).run):
        await eventually(lambda: drained(outbox))
    assert_complete(await published(stack, [str(ticket)]), 2)


async def test_a_kafka_that_hangs_is_given_up_without_leaving_anything_behind(
    stack: Stack,
    outbox: TicketsDatabase,
    database: Database,
    principal: Principal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_module, "SEND_SECONDS", 0.5)
    relay = Relay(outbox.settings())
    around = asyncio.all_tasks()
    async with background.running("relay", relay.run):
        tickets = await new_tickets(database, principal, 5)
        await eventually(lambda: drained(outbox))
        failures = BACKGROUND_FAILURES.labels("relay_publish")._value
        before = failures.get()
        stack.pause("kafka")
        try:
            await asyncio.gather(*(write_versions(database, principal, t, [2]) for t in tickets))
            relay.wake()

            async def failed() -> bool:
                return bool(failures.get() >= before + 3)  # the first producer and its successors

            await eventually(failed)
        finally:
            stack.resume("kafka")
        await eventually(lambda: drained(outbox))
    assert_complete(await published(stack, tickets), 2)

    async def nothing_left() -> bool:
        return not {task for task in asyncio.all_tasks() - around if "aiokafka" in repr(task)}

    await eventually(nothing_left, seconds=5)


async def test_an_event_says_what_was_written_and_where_it_stands_in_the_log(
    stack: Stack, outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    reply, created = await create_ticket(database, principal, NewTicket(title="Told"))
    ticket = msgspec.json.decode(reply.body, type=Ticket)
    changed, updated = await update_ticket(
        database, principal, ticket.id, TicketChanges(title="Told again"), expected_version=1
    )
    async with background.running("relay", Relay(outbox.settings()).run):
        await eventually(lambda: drained(outbox))
    messages = [message for message in await read_topic(stack, TOPIC) if message.key == str(ticket.id).encode()]
    events = [decode(message.headers, message.value) for message in messages]
    assert [event.type for event in events] == ["ticket.created.v1", "ticket.updated.v1"]
    assert [event.data.ticket for event in events] == [ticket, changed]
    assert events[0].position >= created
    assert events[1].position >= updated


async def test_a_relay_that_stops_gives_its_shards_up(outbox: TicketsDatabase, topic: str) -> None:
    free = "SELECT count(*) FROM relay_shards WHERE expires_at <= now()"
    relay = Relay(outbox.settings())
    async with background.running("relay", relay.run):

        async def all_owned() -> bool:
            return int(await outbox.superuser.fetchval(free)) == 0

        await eventually(all_owned)
    assert await outbox.superuser.fetchval(free) == 64
    assert await outbox.superuser.fetchval("SELECT count(*) FROM relay_instances") == 0

"""The relay between a real PostgreSQL and a real Kafka: nothing is lost, no version comes after a newer one."""

import asyncio
import datetime as dt
import os
import random
import signal
import uuid
from pathlib import Path

import msgspec
import pytest

from infra.local.stack import Stack
from libs.common import background
from libs.common.events import TOPIC, decode
from libs.common.identity import Principal
from libs.common.models import NewTicket, Ticket, TicketChanges
from libs.common.postgres import create_pool
from services.tickets import store_relay
from services.tickets.database import RELAY_ROLE, Database
from services.tickets.relay import LEASE, Relay
from services.tickets.tickets import create_ticket, update_ticket
from tests.support.clients import read_topic
from tests.support.relays import SHARDS, assert_complete, drained, new_tickets, owns, rows_in, write_versions
from tests.support.tickets import RelayProcess, TicketsDatabase, eventually, gauge, published, running_relay

pytestmark = pytest.mark.usefixtures("topic")


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


async def test_a_relay_that_stops_gives_its_shards_up(outbox: TicketsDatabase) -> None:
    free = "SELECT count(*) FROM relay_shards WHERE expires_at <= now()"
    relay = Relay(outbox.settings())
    async with background.running("relay", relay.run):

        async def all_owned() -> bool:
            return int(await outbox.superuser.fetchval(free)) == 0

        await eventually(all_owned)
    assert await outbox.superuser.fetchval(free) == 64
    assert await outbox.superuser.fetchval("SELECT count(*) FROM relay_instances") == 0

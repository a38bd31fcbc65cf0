"""The relay's primary is killed and its standby promoted: the relay goes there, says so, and never goes back."""

import urllib.parse
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import msgspec
import pytest_asyncio

from infra.local.postgres import PostgresServer
from infra.local.postgres_replica import PostgresReplica
from infra.local.stack import Stack
from libs.common.events import TOPIC, TicketEvent, decode
from libs.common.models import NewTicket, Ticket, TicketChanges
from libs.common.postgres import UNAVAILABLE_ERRORS
from services.tickets.database import Database
from services.tickets.tickets import create_ticket, update_ticket
from tests.support.clients import read_topic
from tests.support.tickets import eventually, running_relay, tickets_database

REPLAYED = "SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn"
# As if the old primary had taken one more write that nobody was told of.
ORPHAN = """
INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, created_at)
SELECT organization_id, $1, 1, shard, gen_random_uuid(), type, data, created_at FROM (
    SELECT gen_random_uuid() AS organization_id, 0 AS shard, 'ticket.created.v1' AS type,
           '{}'::bytea AS data, now() AS created_at) AS made"""
RELAY_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'relaydesk-tickets-relay'"


@pytest_asyncio.fixture(loop_scope="session")
async def servers(tmp_path: Path) -> AsyncIterator[Stack]:
    stack = Stack(tmp_path / "servers", services=(), replicas=1)
    try:
        async with stack:
            yield stack
    finally:
        stack.remove()


async def events_of(stack: Stack, ticket_id: uuid.UUID) -> list[TicketEvent]:
    messages = [message for message in await read_topic(stack, TOPIC) if message.key == str(ticket_id).encode()]
    return [decode(message.headers, message.value) for message in messages]


async def query(server: PostgresServer, database: str, sql: str, *arguments: object) -> object:
    connection = await server.connect(database)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


async def test_the_relay_follows_a_promotion_and_stamps_the_new_timeline(servers: Stack, tmp_path: Path) -> None:
    old = servers.primary
    (new,) = [part for part in servers.parts.values() if isinstance(part, PostgresReplica)]
    async with tickets_database(servers) as desk:
        address = urllib.parse.urlsplit(old.url(desk.name))
        both = address._replace(netloc=f"{address.netloc},127.0.0.1:{new.port}").geturl()
        settings = {"TICKETS_DATABASE_URL": both, "TICKETS_REPLICA_URLS": "", "TICKETS_ANALYTICS_URL": ""}
        settings = {name: value for name, value in settings.items() if name in desk.environment}
        (principal,) = await desk.organization()

        async def drained(server: PostgresServer) -> bool:
            return await query(server, desk.name, "SELECT count(*) FROM outbox") == 0

        async with running_relay(desk, tmp_path / "relay.log", **settings) as relay:
            async with Database.open(desk.settings(**settings)) as database:
                assert relay.process is not None
                pid = relay.process.pid
                reply, _position = await create_ticket(database, principal, NewTicket(title="Before"))
                ticket = msgspec.json.decode(reply.body, type=Ticket)
                await eventually(lambda: drained(old))
                written = await query(old, desk.name, "SELECT pg_current_wal_insert_lsn()")

                async def replayed() -> bool:
                    return bool(await query(new, desk.name, REPLAYED, written))

                await eventually(replayed)
                servers.kill(old.name)
                await servers.wait_until_dead(old.name)
                await new.promote()
                position = None

                async def updated() -> bool:
                    nonlocal position
                    try:
                        changes = TicketChanges(title="After")
                        _ticket, position = await update_ticket(
                            database, principal, ticket.id, changes, expected_version=1
                        )
                    except (*UNAVAILABLE_ERRORS, asyncpg.PostgresError):
                        return False
                    return True

                await eventually(updated)
                await eventually(lambda: drained(new))
                before, after = await events_of(servers, ticket.id)
                assert (before.version, before.position.timeline) == (1, 1)
                assert (after.version, after.position.timeline) == (2, 2)
                assert position is not None
                assert after.position >= position

            # The old primary is back, and for a while the only one: what it alone has was never acknowledged.
            await new.stop()
            await old.start()
            orphan = uuid.uuid4()
            await query(old, desk.name, ORPHAN, orphan)

            def failures() -> int:
                return (tmp_path / "relay.log").read_text().count("background_task_failed")

            before_asking = failures()

            async def refused() -> bool:  # every time it fails it has asked both servers
                return failures() >= before_asking + 2

            await eventually(refused)
            assert await events_of(servers, orphan) == []

            async def left() -> bool:  # it was there to ask whose primary that is, and again at its next try
                return await query(old, desk.name, RELAY_SESSIONS) == 0

            await eventually(left)
            assert relay.process.pid == pid
            assert relay.alive

"""Work for a client that has gone, or whose time is over, is cancelled at once, yet never in the middle of COMMIT.

With real processes.
"""

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common import deadlines
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Signer
from tests.support.processes import TestedService, running_service
from tests.support.tickets import Answer, TicketsClient, TicketsDatabase, eventually, locked, waiting_for_locks

CREATIONS: dict[str, tuple[str, Any]] = {
    "single": ("/api/tickets", {"title": "Gone"}),
    "bulk": ("/api/tickets/bulk", {"tickets": [{"title": "Gone"}]}),
}
LOCK_NUMBERS = "SELECT FROM organizations WHERE id = $1 FOR UPDATE"
LOCK_TICKETS = "SELECT FROM tickets WHERE id = ANY($1) FOR UPDATE"
HOLD_COMMIT = "SELECT pg_advisory_xact_lock(4711)"
# COMMIT of a ticket with this title waits for an advisory lock, however long.
SLOW_COMMIT = """
CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$
BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT ON tickets DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.title = 'Slow commit') EXECUTE FUNCTION wait_at_commit()"""
IN_COMMIT = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND query = 'COMMIT' AND wait_event_type IS NOT NULL AND state = 'active'"""
WRITTEN = """
SELECT (SELECT count(*) FROM tickets WHERE organization_id = $1) AS tickets,
       (SELECT count(*) FROM outbox WHERE organization_id = $1) AS outbox,
       (SELECT count(*) FROM ticket_history WHERE organization_id = $1) AS history,
       (SELECT count(*) FROM idempotency_records WHERE organization_id = $1) AS records,
       (SELECT last_ticket_number FROM organizations WHERE id = $1) AS number"""


@pytest_asyncio.fixture(loop_scope="session")
async def narrow(stack: Stack, desk: TicketsDatabase, tmp_path: Path) -> AsyncIterator[TestedService]:
    """A service with one connection to the primary, so whoever spoils it is found out."""
    pool = {"TICKETS_POOL_MINIMUM": "1", "TICKETS_POOL_MAXIMUM": "1", "TICKETS_REPLICA_URLS": ""}
    async with running_service(stack, "tickets", tmp_path / "log", script=(), **desk.environment | pool) as service:
        yield service


class Visitor:
    """Sends requests by raw sockets and hangs up when it likes."""

    def __init__(self, stack: Stack, service: TestedService, client: TicketsClient) -> None:
        signer = Signer(stack.credentials.signing_key("gateway"))
        self._port = service.port
        self._token = signer.principal_token(client.principal, "tickets")

    async def send(self, method: str, path: str, body: Any, **headers: str) -> asyncio.StreamWriter:
        return (await self.ask(method, path, body, **headers))[1]

    async def ask(
        self, method: str, path: str, body: Any, **headers: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        content = msgspec.json.encode(body)
        head = {"Host": "x", PRINCIPAL_HEADER: self._token, "Content-Type": "application/json"}
        head |= {"Content-Length": str(len(content))} | {name.replace("_", "-"): text for name, text in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content)
        await writer.drain()
        return reader, writer


@pytest.fixture
def visitor(stack: Stack, narrow: TestedService, client: TicketsClient) -> Visitor:
    return Visitor(stack, narrow, client)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def logged(service: TestedService, event: str) -> int:
    return service.log.read_text().count(f'"event":"{event}"')


async def written(desk: TicketsDatabase, client: TicketsClient) -> dict[str, int]:
    return dict(await desk.superuser.fetchrow(WRITTEN, client.principal.organization_id))


@pytest.mark.parametrize("creation", CREATIONS)
async def test_a_creation_that_waits_for_a_lock_is_rolled_back_when_its_client_hangs_up(
    desk: TicketsDatabase, client: TicketsClient, narrow: TestedService, visitor: Visitor, creation: str
) -> None:
    before = await written(desk, client)
    path, body = CREATIONS[creation]
    async with locked(desk, LOCK_NUMBERS, client.principal.organization_id):
        writer = await visitor.send("POST", path, body, Idempotency_Key="gone")
        await eventually(lambda: waiting_for_locks(desk))
        await hang_up(writer)

        async def nobody_waits() -> bool:
            return await waiting_for_locks(desk) == 0

        await eventually(nobody_waits)
        assert logged(narrow, "request_abandoned") == 1
        assert logged(narrow, "dependency_failed") == 0, "it was not the time-out of the lock"
    assert await written(desk, client) == before


async def test_locks_that_a_gone_clients_work_held_are_free_at_once(
    desk: TicketsDatabase, client: TicketsClient, narrow: TestedService, visitor: Visitor
) -> None:
    """A bulk update holds its first ticket and waits for its second."""
    first, second = sorted([(await client.create()).body["id"] for _ in range(2)])
    async with locked(desk, LOCK_TICKETS, [uuid.UUID(second)]):
        rows = [{"id": ticket_id, "version": 1, "title": "Gone"} for ticket_id in (first, second)]
        writer = await visitor.send("PATCH", "/api/tickets/bulk", {"tickets": rows})
        await eventually(lambda: waiting_for_locks(desk))
        await hang_up(writer)
        assert (await client.update(first, 1, title="Mine")).status == 200
        assert logged(narrow, "dependency_failed") == 0, "it was not the time-out of the lock"
    assert (await client.update(second, 1, title="Mine too")).status == 200


@contextlib.asynccontextmanager
async def commits_held(desk: TicketsDatabase) -> AsyncIterator[None]:
    """COMMIT of a creation of `Slow commit` waits while the block lasts."""
    await desk.superuser.execute(SLOW_COMMIT)
    try:
        async with locked(desk, HOLD_COMMIT):
            yield
    finally:
        await desk.superuser.execute("DROP FUNCTION wait_at_commit CASCADE")


async def test_a_commit_is_finished_when_the_client_hangs_up_meanwhile(
    desk: TicketsDatabase, client: TicketsClient, narrow: TestedService, visitor: Visitor
) -> None:
    body = {"title": "Slow commit"}
    async with commits_held(desk):
        writer = await visitor.send("POST", "/api/tickets", body, Idempotency_Key="commit")
        await eventually(lambda: desk.superuser.fetchval(IN_COMMIT))
        pid = await desk.superuser.fetchval(IN_COMMIT)
        await hang_up(writer)
        await noticed(narrow)
        assert await desk.superuser.fetchval(IN_COMMIT) == pid, "it is left alone"

    async def all_written() -> bool:
        return await written(desk, client) == dict.fromkeys(("tickets", "outbox", "history", "records", "number"), 1)

    await eventually(all_written)
    again = await create_again(client, body, "commit")
    assert (again.status, again.headers["Idempotency-Replayed"]) == (201, "true")
    # The connection, the only one, is used again, and nothing of the transaction is left on it.
    visited = await visitor.send("POST", "/api/tickets", {"title": "Next"})

    async def next_written() -> bool:
        return (await written(desk, client))["number"] == 2

    await eventually(next_written)
    await hang_up(visited)
    assert await desk.superuser.fetchval("SELECT state FROM pg_stat_activity WHERE pid = $1", pid) == "idle"


@pytest.mark.parametrize("creation", CREATIONS)
async def test_a_request_whose_deadline_is_over_is_answered_and_its_statement_is_gone(
    desk: TicketsDatabase, client: TicketsClient, narrow: TestedService, visitor: Visitor, creation: str
) -> None:
    before = await written(desk, client)
    path, body = CREATIONS[creation]
    async with locked(desk, LOCK_NUMBERS, client.principal.organization_id):
        reader, writer = await visitor.ask("POST", path, body, Relaydesk_Deadline_Ms="1000")
        await eventually(lambda: waiting_for_locks(desk))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert head.startswith(b"HTTP/1.1 504 "), head
        assert b"deadline_exceeded" in await reader.readuntil(b"}")
        assert await waiting_for_locks(desk) == 0
        assert logged(narrow, "dependency_failed") == 0, "it was not the time-out of the lock"
        await hang_up(writer)
    assert await written(desk, client) == before
    in_time = await client.request("POST", "/api/tickets", json={"title": "T"}, headers={deadlines.HEADER: "30000"})
    assert in_time.status == 201


async def test_a_commit_is_finished_when_the_deadline_is_over_and_then_the_client_hangs_up(
    desk: TicketsDatabase, client: TicketsClient, narrow: TestedService, visitor: Visitor
) -> None:
    async with commits_held(desk):
        _reader, writer = await visitor.ask(
            "POST", "/api/tickets", {"title": "Slow commit"}, Relaydesk_Deadline_Ms="700"
        )
        await eventually(lambda: desk.superuser.fetchval(IN_COMMIT))
        pid = await desk.superuser.fetchval(IN_COMMIT)
        await asyncio.sleep(1)  # the deadline passes, and nothing shows it
        await hang_up(writer)
        await noticed(narrow)
        assert await desk.superuser.fetchval(IN_COMMIT) == pid, "it is left alone"
        # The only connection is not lent to anybody else before it is free.
        next_one = asyncio.create_task(visitor.send("POST", "/api/tickets", {"title": "Next"}))
        await noticed(narrow)
        assert await desk.superuser.fetchval(IN_COMMIT) == pid

    async def both_written() -> bool:
        return (await written(desk, client))["tickets"] == 2

    await eventually(both_written)
    await hang_up(await next_one)
    assert logged(narrow, "request_failed") == 0


async def test_a_wait_for_a_synchronous_standby_is_not_cut_short_when_the_client_hangs_up(
    stack: Stack, desk: TicketsDatabase, client: TicketsClient, narrow: TestedService, visitor: Visitor
) -> None:
    """Cut short, the write would be seen on this server alone, and lost with it."""
    in_wait = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'SyncRep'"
    async with synchronous_standby(stack, "nobody"):
        writer = await visitor.send("POST", "/api/tickets", {"title": "Synchronous"})
        await eventually(lambda: desk.superuser.fetchval(in_wait))
        await hang_up(writer)
        await noticed(narrow)
        assert await desk.superuser.fetchval(in_wait) == 1
        assert (await written(desk, client))["tickets"] == 0
    await eventually(lambda: desk.superuser.fetchval("SELECT 1 FROM tickets WHERE title = 'Synchronous'"))


@contextlib.asynccontextmanager
async def synchronous_standby(stack: Stack, name: str) -> AsyncIterator[None]:
    """Every COMMIT of the cluster waits for a standby of this name."""
    admin = await asyncpg.connect(stack.primary.url("postgres", superuser=True))
    try:
        await admin.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        await admin.execute("SELECT pg_reload_conf()")

        async def in_force() -> bool:
            return bool(await admin.fetchval("SHOW synchronous_standby_names") == name)

        await eventually(in_force)
        yield
    finally:
        await admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await admin.execute("SELECT pg_reload_conf()")
        await admin.close()


async def noticed(service: TestedService) -> None:
    """The service has had the time to notice that a client hung up: it has served others since, ten times over."""
    for _ in range(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in await reader.read()
        writer.close()
    # A cancelled statement is cancelled by a connection of its own, which takes its time.
    await asyncio.sleep(0.3)


async def test_whenever_a_client_hangs_up_a_creation_is_whole_or_not_there(
    desk: TicketsDatabase, client: TicketsClient, narrow: TestedService, visitor: Visitor
) -> None:
    """Hundred requests of which each is given up after 0 to 15 ms, at every point of their work."""
    chance = random.Random(3)

    async def give_up(number: int) -> None:
        writer = await visitor.send("POST", "/api/tickets", {"title": f"{number}"}, Idempotency_Key=f"n-{number}")
        await asyncio.sleep(chance.uniform(0, 0.015))
        await hang_up(writer)

    for start in range(0, 100, 5):
        await asyncio.gather(*(give_up(number) for number in range(start, start + 5)))
    counted = await settled(desk, client)
    assert len(set(counted.values())) == 1, counted
    assert 0 < counted["tickets"] < 100, "some of each kind, or this has shown nothing"
    for number in range(100):
        assert (await create_again(client, {"title": f"{number}"}, f"n-{number}")).status == 201
    assert set((await written(desk, client)).values()) == {100}


async def create_again(client: TicketsClient, body: Any, key: str) -> Answer:
    """The request as the visitor sent it, byte for byte."""
    headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
    return await client.request("POST", "/api/tickets", data=msgspec.json.encode(body), headers=headers)


async def settled(desk: TicketsDatabase, client: TicketsClient) -> dict[str, int]:
    """What is written once nobody writes any more."""
    busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"

    async def quiet() -> bool:
        return int(await desk.superuser.fetchval(busy)) == 1  # this one

    await eventually(quiet)
    return await written(desk, client)

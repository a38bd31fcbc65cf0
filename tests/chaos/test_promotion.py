"""The primary is killed under writes and a synchronous standby promoted: nothing that was acknowledged is lost."""

import asyncio
import contextlib
import urllib.parse
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

from infra.local.postgres import PostgresServer
from infra.local.postgres_replica import PostgresReplica
from infra.local.stack import Stack
from libs.common.identity import Signer
from libs.common.postgres import create_pool
from services.tickets.database import APP_ROLE
from services.tickets.servers import Fence
from tests.support.processes import TestedService, running_service
from tests.support.tickets import Answer, TicketsClient, TicketsDatabase, eventually, tickets_database

WRITERS = 8
ENOUGH = 40  # acknowledged writes before the kill, and as many after it
EXTERNAL = {
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "REDIS_URL": "redis://127.0.0.1:1",
    "CACHE_REDIS_URL": "redis://127.0.0.1:1",
}
SYNCHRONOUS = "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'"
RELOAD = "SELECT pg_reload_conf()"
HISTORY = "SELECT ticket_id, version, changes -> 'title' ->> 1 AS title FROM ticket_history WHERE version > 1"
CREATED = "SELECT id FROM tickets"
RECEIVED = "SELECT pg_last_wal_receive_lsn()"
STREAMING = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
TIMELINE = "SELECT max(timeline) FROM database_timelines"
UNREPLICATED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
# The service's sessions on a server, but for those that watch it.
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'relaydesk-tickets'"


class Acknowledged(NamedTuple):
    """What a client was told: this version of this ticket has this title."""

    ticket_id: uuid.UUID
    version: int
    title: str


class Writer:
    """Creates tickets and changes them, one after the other; after each it reads what it was told."""

    def __init__(self, client: TicketsClient) -> None:
        self.client = client
        self.acknowledged: list[Acknowledged] = []
        self.refused = 0
        self._newest = ""

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            created = await self._ask("POST", "/api/tickets", {"title": self._title()})
            if created is None:
                continue
            last = self._told(created)
            for _ in range(4):
                headers = {"If-Match": f'"{last.version}"'}
                changed = await self._ask("PATCH", f"/api/tickets/{last.ticket_id}", {"title": self._title()}, headers)
                if changed is None:
                    break  # nobody knows whether it was done
                last = self._told(changed)
                await self._read(last)

    async def _ask(
        self, method: str, path: str, body: dict[str, str], headers: dict[str, str] | None = None
    ) -> Answer | None:
        answer = await self.client.request(method, path, json=body, headers=headers or {})
        if answer.status in {200, 201}:
            self._goes_on(answer)
            return answer
        assert answer.status == 503, answer
        assert int(answer.headers["Retry-After"]) > 0
        self.refused += 1
        await asyncio.sleep(0.05)
        return None

    async def _read(self, last: Acknowledged) -> None:
        """With the token of the write, so the answer has it or there is none."""
        answer = await self.client.request("GET", f"/api/tickets/{last.ticket_id}")
        if answer.status == 503:
            self.refused += 1
            return
        assert (answer.status, answer.body["version"], answer.body["title"]) == (200, last.version, last.title), answer
        self._goes_on(answer)

    def _goes_on(self, answer: Answer) -> None:
        assert answer.token >= self._newest, "time went back"
        self._newest = answer.token

    def _title(self) -> str:
        return f"Title {uuid.uuid4()}"

    def _told(self, answer: Answer) -> Acknowledged:
        told = Acknowledged(uuid.UUID(answer.body["id"]), answer.body["version"], answer.body["title"])
        self.acknowledged.append(told)
        return told


@pytest_asyncio.fixture(loop_scope="session")
async def servers(tmp_path: Path) -> AsyncIterator[Stack]:
    """A primary and two replicas, each of which waits for one of the others when it is the primary."""
    stack = Stack(tmp_path / "servers", environ=EXTERNAL, services=(), replicas=2)
    try:
        async with stack:
            for server in all_servers(stack):
                await on(server, SYNCHRONOUS)
                await on(server, RELOAD)
            yield stack
    finally:
        stack.remove()


def all_servers(stack: Stack) -> list[PostgresServer]:
    return [part for part in stack.parts.values() if isinstance(part, PostgresServer)]


def replicas(stack: Stack) -> list[PostgresReplica]:
    return [part for part in stack.parts.values() if isinstance(part, PostgresReplica)]


async def on(server: PostgresServer, query: str, database: str = "postgres") -> list[asyncpg.Record]:
    connection = await server.connect(database)
    try:
        return list(await connection.fetch(query))
    finally:
        await connection.close()


def address_of_all(stack: Stack, database: str) -> str:
    """One address with the hosts of all servers, the first primary's first."""
    urls = [urllib.parse.urlsplit(server.url(database)) for server in all_servers(stack)]
    login = urls[0].netloc.rpartition("@")[0]
    hosts = ",".join(url.netloc.rpartition("@")[2] for url in urls)
    return urls[0]._replace(netloc=f"{login}@{hosts}").geturl()


@contextlib.asynccontextmanager
async def writing(
    stack: Stack, desk: TicketsDatabase, service: TestedService, stop: asyncio.Event
) -> AsyncIterator[list[Writer]]:
    signer = Signer(stack.credentials.signing_key("gateway"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        people = [(await desk.organization())[0] for _ in range(WRITERS)]
        writers = [Writer(TicketsClient(session, service.url, signer, principal)) for principal in people]
        async with asyncio.TaskGroup() as tasks:
            for writer in writers:
                tasks.create_task(writer.run(stop))
            try:
                yield writers
            finally:
                stop.set()


def total(writers: list[Writer]) -> int:
    return sum(len(writer.acknowledged) for writer in writers)


async def more(writers: list[Writer], count: int) -> None:
    """Wait for that many further acknowledged writes."""
    wanted = total(writers) + count

    async def enough() -> bool:
        return total(writers) >= wanted

    await eventually(enough, seconds=60)


@contextlib.asynccontextmanager
async def frozen(stack: Stack, servers: list[PostgresReplica]) -> AsyncIterator[None]:
    for server in servers:
        stack.pause(server.name)
    try:
        yield
    finally:
        for server in servers:
            stack.resume(server.name)


async def unreplicated(primary: PostgresServer) -> None:
    """Wait until commits wait for a standby."""

    async def waiting() -> bool:
        return bool((await on(primary, UNREPLICATED))[0][0] >= WRITERS // 2)

    await eventually(waiting)


async def furthest(candidates: list[PostgresReplica]) -> PostgresReplica:
    """The standby that has received most; with one synchronous standby of two, another may lack what was told."""
    received = [(await on(candidate, RECEIVED))[0][0] for candidate in candidates]
    return candidates[received.index(max(received))]


@pytest.mark.parametrize("end", ["killed", "hangs"])
async def test_a_promotion_loses_nothing_that_was_acknowledged(servers: Stack, tmp_path: Path, end: str) -> None:
    old = servers.primary
    stop = asyncio.Event()
    async with tickets_database(servers) as desk:
        settings = desk.environment | {"TICKETS_DATABASE_URL": address_of_all(servers, desk.name)}
        settings["TICKETS_POOL_MAXIMUM"] = "8"
        log = tmp_path / "tickets.log"
        async with (
            running_service(servers, "tickets", log, script=(), **settings) as service,
            writing(servers, desk, service, stop) as writers,
        ):
            await more(writers, ENOUGH)
            async with frozen(servers, replicas(servers)):
                await unreplicated(old)  # commits that nobody was told of
                if end == "killed":
                    servers.kill(old.name)
                    await servers.wait_until_dead(old.name)
                else:
                    servers.pause(old.name)
            new = await furthest(replicas(servers))
            (other,) = [replica for replica in replicas(servers) if replica is not new]
            await new.promote()

            async def is_noticed() -> bool:
                return '"database_promoted"' in log.read_text()

            await eventually(is_noticed)  # while no commit can be replicated
            await other.follow(new)
            await more(writers, ENOUGH)

            async def is_read_from() -> bool:
                return bool((await on(other, SESSIONS))[0][0])

            await eventually(is_read_from)
            assert (await on(new, STREAMING))[0][0] == 1, "the other follows the new one"
        assert sum(writer.refused for writer in writers) > 0, "nobody noticed anything"
        await compare(writers, new, desk.name)
        await compare_replica(new, other)

        # The old primary comes back as if nothing had happened. Who has seen the new one never goes there again.
        if end == "killed":
            await servers.restart(old.name)
        else:
            servers.resume(old.name)
        assert await port_of(settings["TICKETS_DATABASE_URL"], Fence()) == old.port, "it does take writes"
        fence = Fence()
        fence.accept((await on(new, TIMELINE, desk.name))[0][0])
        assert await port_of(settings["TICKETS_DATABASE_URL"], fence) == new.port


async def compare(writers: list[Writer], new: PostgresServer, database: str) -> None:
    told = {one for writer in writers for one in writer.acknowledged}
    assert len(told) == total(writers)
    kept = {Acknowledged(*row) for row in await on(new, HISTORY, database)}
    created = {row["id"] for row in await on(new, CREATED, database)}
    assert {one for one in told if one.version > 1} - kept == set()
    assert {one.ticket_id for one in told} - created == set()


async def compare_replica(new: PostgresServer, other: PostgresServer) -> None:
    (target,) = (await on(new, "SELECT pg_current_wal_flush_lsn()"))[0]

    async def reached() -> bool:
        return bool((await on(other, "SELECT pg_last_wal_replay_lsn()"))[0][0] >= target)

    await eventually(reached)


async def port_of(url: str, fence: Fence) -> int:
    async with await create_pool(url, role=APP_ROLE, service="test", minimum=1, maximum=1, check=fence.check) as pool:
        return int(await pool.fetchval("SELECT inet_server_port()"))

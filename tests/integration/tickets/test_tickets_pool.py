"""The pool: its limits, its warm-up, what it does when it is exhausted and when the database comes back."""

import asyncio
import contextlib
import dataclasses
import socket
import urllib.parse
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from infra.local.ports import HOST, free_ports
from infra.local.stack import Stack
from libs.common import postgres
from libs.common.consistency import Requirement
from libs.common.identity import Principal
from libs.common.metrics import DB_QUERY_DURATION
from libs.common.models import NewTicket, TicketChanges
from libs.common.people import SignIn
from libs.common.postgres import create_pool, translate_error
from libs.common.problems import Problem
from services.tickets import people
from services.tickets.app import HOT
from services.tickets.database import APP_ROLE, IDENTITY_ROLE, Database, HotStatements
from services.tickets.lists import Wanted, list_tickets
from services.tickets.servers import Replica
from services.tickets.settings import DatabaseSettings
from services.tickets.store_servers import READ_POSITION, SERVER_POSITION
from services.tickets.tickets import create_ticket, get_ticket, update_ticket
from tests.support.processes import TestedService
from tests.support.tickets import TicketsClient, TicketsDatabase, eventually, locked, waiting_for_locks
from tests.support.transactions import transaction

PREPARED = "SELECT statement FROM pg_prepared_statements"
UNREPLICATED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
TICKETS_OF = "SELECT count(*) FROM tickets WHERE organization_id = ANY($1)"


async def prepared(connection: asyncpg.Connection) -> set[str]:
    return {row["statement"] for row in await connection.fetch(PREPARED)} - {PREPARED}


def observed() -> float:
    """How many statements db_query_duration_ms has counted, but for the watch on the servers."""
    return sum(
        sample.value
        for metric in DB_QUERY_DURATION.collect()
        for sample in metric.samples
        if sample.name.endswith("_count") and sample.labels["table"] != "database_timelines"
    )


async def test_a_session_has_the_promised_limits(desk: TicketsDatabase) -> None:
    url = desk.environment["TICKETS_DATABASE_URL"]
    async with await create_pool(url, role=APP_ROLE, service="test", minimum=1, maximum=1) as pool:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "role")
        limits = [await pool.fetchval(f"SHOW {name}") for name in names]
    assert limits == ["10s", "3s", "30s", APP_ROLE]
    assert (postgres.CONNECT_SECONDS, postgres.IDLE_SECONDS, postgres.USES_PER_CONNECTION) == (5, 600, 5000)


async def test_the_minimum_is_open_from_the_start(desk: TicketsDatabase) -> None:
    async with Database.open(desk.settings(TICKETS_POOL_MINIMUM="7", TICKETS_POOL_MAXIMUM="9")) as database:
        pool = database.servers.primary.connections.pool
        assert (pool.get_size(), pool.get_min_size(), pool.get_max_size()) == (7, 7, 9)
    defaults = {field.name: field.default for field in dataclasses.fields(DatabaseSettings)}
    assert (defaults["pool_minimum"], defaults["pool_maximum"]) == (10, 50)


async def test_a_new_connection_has_prepared_the_hot_statements_and_that_is_no_query(desk: TicketsDatabase) -> None:
    (principal,) = await desk.organization()
    async with Database.open(desk.settings(), HOT) as database:
        await every_replica(database, principal)
        before = observed()
        primary, replicas = database.servers.primary, database.servers.replicas
        async with contextlib.AsyncExitStack() as held:
            pools = [each.pool for each in (primary.connections, database.identity, *(r.connections for r in replicas))]
            # One more than there are, so that the last one is new.
            connections = [
                [await held.enter_async_context(pool.acquire()) for _ in range(pool.get_size() + 1)] for pool in pools
            ]
            assert observed() == before
            own, identity, *read = [await prepared(among[-1]) for among in connections]
        assert own >= {*HOT.reads, *HOT.writes, SERVER_POSITION, READ_POSITION}
        assert identity >= set(HOT.identity)
        for statements in read:
            assert statements >= {*HOT.reads, READ_POSITION}


async def test_a_replica_has_its_minimum_open_once_it_is_found(stack: Stack, desk: TicketsDatabase) -> None:
    """Before anything is read, also from one that was away when the service started."""
    stopped = "replica-1"
    await stack.parts[stopped].stop()
    try:
        async with Database.open(desk.settings(TICKETS_POOL_MINIMUM="4", TICKETS_POOL_MAXIMUM="6")) as database:
            away, found = database.servers.replicas

            async def open_to(replica: Replica) -> tuple[int, int]:
                return replica.connections.pool.get_size(), replica.connections.pool.get_idle_size()

            async def found_has_its_minimum() -> bool:
                return await open_to(found) == (4, 4)

            await eventually(found_has_its_minimum)
            assert (away.standing, await open_to(away)) == (None, (0, 0))
            await stack.restart(stopped)

            async def both_have_their_minimum() -> bool:
                return await open_to(away) == await open_to(found) == (4, 4)

            await eventually(both_have_their_minimum)
    finally:
        await stack.restart(stopped)


async def every_replica(database: Database, principal: Principal) -> None:
    """Wait until each has been read from."""

    async def asked() -> bool:
        await database.read(
            principal.organization_id, Requirement(), lambda connection: connection.fetchval("SELECT 1")
        )
        return all(replica.connections.pool.get_size() for replica in database.servers.replicas)

    await eventually(asked)


async def test_the_hot_statements_are_those_of_a_create_a_change_a_read_and_a_list(desk: TicketsDatabase) -> None:
    """What these do on a connection that has been warmed up, it has prepared."""
    (principal,) = await desk.organization()
    settings = desk.settings(TICKETS_REPLICA_URLS="", TICKETS_POOL_MINIMUM="1", TICKETS_POOL_MAXIMUM="1")
    async with Database.open(settings, HOT) as database:
        async with database.servers.primary.connections.lend() as connection:
            before = await prepared(connection)
        reply, _position = await create_ticket(database, principal, NewTicket(title="Hot"))
        ticket_id = uuid.UUID(reply.headers["Location"].rpartition("/")[2])
        await update_ticket(database, principal, ticket_id, TicketChanges(title="Hotter"), expected_version=1)
        await get_ticket(database, principal.organization_id, ticket_id, Requirement())
        await list_tickets(database, principal.organization_id, Requirement(), Wanted(), cursor=None, limit=10)
        async with database.servers.primary.connections.lend() as connection:
            assert await prepared(connection) == before


async def test_the_warm_up_leaves_no_transaction_open(desk: TicketsDatabase) -> None:
    (principal,) = await desk.organization()
    url = desk.environment["TICKETS_DATABASE_URL"]
    statements = ("SELECT 1", "SELECT 2")
    pool = await create_pool(url, role=APP_ROLE, service="test", minimum=1, maximum=1, prepare=statements)
    # A transaction that has begun already would not take an isolation level.
    async with pool, transaction(pool, organization_id=principal.organization_id, read_only=True) as connection:
        assert await connection.fetchval("SHOW transaction_isolation") == "repeatable read"


async def test_a_statement_that_the_schema_does_not_know_yet_is_left_out_of_the_warm_up(desk: TicketsDatabase) -> None:
    """A replica may not have replayed the last migration."""
    (principal,) = await desk.organization()
    hot = HotStatements(reads=("SELECT column_of_tomorrow FROM tickets",))
    async with Database.open(desk.settings(TICKETS_REPLICA_URLS=""), hot) as database:
        found = await database.read(
            principal.organization_id, Requirement(), lambda connection: connection.fetchval("SELECT 1")
        )
    assert found.value == 1


async def test_an_exhausted_pool_is_told_in_bounded_time_and_recovers(
    desk: TicketsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = [(await desk.organization())[0] for _ in range(3)]  # one alone may hold half of it
    monkeypatch.setattr("services.tickets.servers.ANSWER_SECONDS", 0.5)
    settings = desk.settings(TICKETS_POOL_MINIMUM="2", TICKETS_POOL_MAXIMUM="2", TICKETS_REPLICA_URLS="")
    async with Database.open(settings) as database:
        async with database.write(first.organization_id), database.write(second.organization_id):
            async with asyncio.timeout(postgres.ACQUIRE_SECONDS * 3):
                with pytest.raises(TimeoutError) as raised:
                    await create_ticket(database, third, NewTicket(title="One too many"))
            problem = translate_error(raised.value)
            assert problem is not None
            assert (problem.status, problem.code) == (503, "service_unavailable")
            assert int(problem.headers["Retry-After"]) > 0
            assert database.servers.primary.standing is not None, "a full pool is no dead server"
        await create_ticket(database, third, NewTicket(title="Room again"))


async def test_who_signs_in_when_all_connections_for_that_are_taken_is_told_in_bounded_time(
    desk: TicketsDatabase,
) -> None:
    request = SignIn(organization="nobody", email="nobody@example.com", password="a password")
    settings = desk.settings(TICKETS_REPLICA_URLS="")
    async with Database.open(settings) as database:
        async with contextlib.AsyncExitStack() as held:
            for _ in range(database.identity.pool.get_max_size()):
                await held.enter_async_context(database.identity.lend())
            async with asyncio.timeout(postgres.ACQUIRE_SECONDS * 3):
                outcomes = await asyncio.gather(
                    people.sign_in(database, request), people.resolve_key(database, b"unknown"), return_exceptions=True
                )
        for outcome in outcomes:
            assert isinstance(outcome, TimeoutError)
            problem = translate_error(outcome)
            assert problem is not None
            assert (problem.status, problem.code) == (503, "service_unavailable")
            assert int(problem.headers["Retry-After"]) > 0
        with pytest.raises(Problem, match="invalid_credentials"):
            await people.sign_in(database, request)
        with pytest.raises(Problem, match="authentication_required"):
            await people.resolve_key(database, b"unknown")


async def test_a_client_that_waits_for_a_lock_too_long_is_told_to_try_again(
    desk: TicketsDatabase, client: TicketsClient
) -> None:
    ticket = (await client.create()).body
    async with locked(desk, "SELECT 1 FROM tickets WHERE id = $1 FOR UPDATE", uuid.UUID(ticket["id"])):
        asked = asyncio.create_task(client.update(ticket["id"], 1, title="Waits"))

        async def waits() -> bool:
            return await waiting_for_locks(desk) == 1

        await eventually(waits)
        async with asyncio.timeout(30):
            answer = await asked
        assert (answer.status, answer.code) == (503, "service_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        assert await waiting_for_locks(desk) == 0
    assert (await client.update(ticket["id"], 1, title="Done")).status == 200


async def test_the_server_ends_a_statement_that_takes_too_long(desk: TicketsDatabase) -> None:
    url = desk.environment["TICKETS_DATABASE_URL"]
    async with await create_pool(
        url, role=APP_ROLE, service="test", minimum=1, maximum=1, statement_seconds=0.1
    ) as pool:
        with pytest.raises(asyncpg.QueryCanceledError) as raised:  # and not the driver's TimeoutError
            await pool.fetchval("SELECT pg_sleep(60)")
        problem = translate_error(raised.value)
        assert problem is not None
        assert problem.status == 503
        assert await pool.fetchval("SELECT 1") == 1


async def test_the_service_goes_on_when_its_database_was_restarted(
    stack: Stack, client: TicketsClient, service: TestedService
) -> None:
    assert service.process is not None
    process_id = service.process.pid
    ticket = (await client.create()).body
    for _ in range(2):
        await stack.restart("postgres")

        async def written() -> bool:
            answer = await client.request("POST", "/api/tickets", json={"title": "Again"})
            assert answer.status in {201, 503}, answer
            return answer.status == 201

        await eventually(written)
        assert (await client.request("GET", f"/api/tickets/{ticket['id']}")).status == 200
    assert service.process.pid == process_id


async def test_nothing_cancels_a_commit_that_waits_for_its_standby(
    stack: Stack, desk: TicketsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelling it would commit on the primary alone: all would see what a promotion may lose."""
    principals = [(await desk.organization())[0] for _ in range(2)]
    organizations = [principal.organization_id for principal in principals]

    async def waiting() -> int:
        return int(await desk.superuser.fetchval(UNREPLICATED))

    async def visible() -> int:
        return int(await desk.superuser.fetchval(TICKETS_OF, organizations))

    async with Database.open(desk.settings(TICKETS_REPLICA_URLS="")) as database:
        monkeypatch.setattr(postgres, "STATEMENT_SECONDS", 1.0)
        async with synchronous_with_nobody(stack):
            commits = [
                asyncio.create_task(create_ticket(database, principal, NewTicket(title="Waits")))
                for principal in principals
            ]

            async def both_wait() -> bool:
                return await waiting() == 2

            await eventually(both_wait)
            commits[0].cancel()
            async with asyncio.timeout(20):
                results = await asyncio.gather(*commits, return_exceptions=True)
            assert [type(result) for result in results] == [
                asyncio.CancelledError,
                asyncpg.ConnectionDoesNotExistError,
            ]
            assert translate_error(asyncpg.ConnectionDoesNotExistError()) is not None
            assert (await waiting(), await visible()) == (2, 0), "the server goes on waiting"

        async def both_seen() -> bool:
            return await visible() == 2

        await eventually(both_seen)


@contextlib.asynccontextmanager
async def synchronous_with_nobody(stack: Stack) -> AsyncIterator[None]:
    """Commits wait for a standby that does not exist."""
    superuser = await stack.primary.connect()
    try:
        await superuser.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await superuser.execute("SELECT pg_reload_conf()")

        async def set_everywhere() -> bool:
            other = await stack.primary.connect()
            try:
                return bool(await other.fetchval("SHOW synchronous_standby_names") == "nobody")
            finally:
                await other.close()

        await eventually(set_everywhere)
        yield
    finally:
        await superuser.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await superuser.execute("SELECT pg_reload_conf()")
        await superuser.close()


@pytest.mark.parametrize("role", [APP_ROLE, IDENTITY_ROLE])
async def test_the_server_that_takes_writes_is_found_among_the_hosts(
    stack: Stack, desk: TicketsDatabase, role: str
) -> None:
    """One accepts connections and never answers, one takes no writes, one is not there, the last is the primary."""
    url = urllib.parse.urlsplit(desk.environment["TICKETS_DATABASE_URL"])
    login, _at, primary = url.netloc.rpartition("@")
    (gone,) = free_ports(1)
    with socket.create_server((HOST, 0)) as silent:
        hosts = f"{HOST}:{silent.getsockname()[1]},{HOST}:{stack.parts['replica-1'].port},{HOST}:{gone},{primary}"
        settings = desk.settings(
            TICKETS_DATABASE_URL=url._replace(netloc=f"{login}@{hosts}").geturl(), TICKETS_REPLICA_URLS=""
        )
        pool = await create_pool(settings.database_url, role=role, service="test", minimum=0, maximum=2)
        async with pool:
            async with pool.acquire(timeout=postgres.ACQUIRE_SECONDS) as connection:  # as whoever asks waits
                assert await connection.fetchval("SELECT inet_server_port()") == stack.primary.port
            assert accepted(silent) == 1
            await pool.expire_connections()
            assert await pool.fetchval("SELECT inet_server_port()") == stack.primary.port
            assert accepted(silent) == 0, "it begins with the one of last time"
    replica_only = url._replace(netloc=f"{login}@{HOST}:{stack.parts['replica-1'].port}").geturl()
    with pytest.raises(postgres.UNAVAILABLE_ERRORS):
        await create_pool(replica_only, role=role, service="test", minimum=1, maximum=2)


def accepted(server: socket.socket) -> int:
    """How many connections have come to a server since the last call."""
    server.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count

"""The primary is not what it was: it takes no more writes, or its database comes from another cluster."""

import contextlib
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from infra.local.stack import Stack
from libs.common.consistency import Requirement
from libs.common.identity import Principal
from libs.common.lending import Lending
from libs.common.models import NewTicket
from libs.common.postgres import translate_error
from services.tickets.database import Database
from services.tickets.tickets import create_ticket
from tests.support.tickets import TicketsDatabase, eventually

TIMELINES = "SELECT array_agg(timeline ORDER BY timeline) FROM database_timelines"


@contextlib.asynccontextmanager
async def sessions_that_may_not_write(stack: Stack, database: TicketsDatabase) -> AsyncIterator[None]:
    """Sessions from before may not write any more; those that are begun now in `database` may, as on another server."""

    async def set_everywhere(value: str) -> None:
        # A new session that has it: so every other has it with its next command.
        async def told() -> bool:
            other = await stack.primary.connect()
            try:
                return bool(await other.fetchval("SHOW default_transaction_read_only") == value)
            finally:
                await other.close()

        await superuser.execute("SELECT pg_reload_conf()")
        await eventually(told)

    superuser = await stack.primary.connect()
    try:
        await superuser.execute(f'ALTER DATABASE "{database.name}" SET default_transaction_read_only = off')
        await superuser.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await set_everywhere("on")
        yield
    finally:
        await superuser.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await set_everywhere("off")
        await superuser.close()


async def session_of(lending: Lending) -> int:
    async with lending.lend() as connection:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def test_a_write_that_is_refused_as_read_only_lets_the_next_one_look_for_the_primary(
    stack: Stack, outbox: TicketsDatabase, principal: Principal
) -> None:
    settings = outbox.settings(TICKETS_POOL_MINIMUM="2", TICKETS_POOL_MAXIMUM="2", TICKETS_REPLICA_URLS="")
    async with Database.open(settings) as database:
        before = await session_of(database.identity)
        async with sessions_that_may_not_write(stack, outbox):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError) as refused:
                await create_ticket(database, principal, NewTicket(title="Refused"))
            problem = translate_error(refused.value)
            assert problem is not None
            assert (problem.status, problem.code) == (503, "service_unavailable")
            for _ in range(2):  # no connection from before is left
                await create_ticket(database, principal, NewTicket(title="Accepted"))
            assert await session_of(database.identity) != before, "sign-in is to follow as well"


async def test_timelines_that_a_dump_has_brought_from_another_cluster_keep_no_replica_from_reads(
    stack: Stack, outbox: TicketsDatabase, principal: Principal
) -> None:
    own = await outbox.superuser.fetchval(TIMELINES)
    later = [own[-1] + 1, own[-1] + 7]
    await outbox.superuser.execute("INSERT INTO database_timelines SELECT unnest($1::integer[])", later)
    async with Database.open(outbox.settings()) as database:

        async def usable() -> bool:
            return all(replica.usable for replica in database.servers.replicas)

        await eventually(usable)
        assert await outbox.superuser.fetchval(TIMELINES) == own
        assert await port_of_a_read(database, principal.organization_id) in {
            stack.parts[name].port for name in ("replica-1", "replica-2")
        }


async def port_of_a_read(database: Database, organization_id: uuid.UUID) -> int:
    async def work(connection: asyncpg.Connection) -> int:
        return int(await connection.fetchval("SELECT inet_server_port()"))

    return (await database.read(organization_id, Requirement(), work)).value

"""Reading one ticket at the tickets service, past every cache, beside the same read by bare asyncpg.

The baseline asks the server that the service reads from, with the same role, statements and round trips, and as many
clients; it lacks HTTP, authentication and JSON. A second line says what row-level security and the transaction that
sets its tenant cost: the same SELECT by a superuser, alone.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

import asyncpg

from infra.local.postgres import PostgresServer
from infra.local.stack import Stack
from libs.common.postgres import create_pool
from services.tickets.database import APP_ROLE
from services.tickets.store_servers import READ_POSITION
from services.tickets.store_tickets import SELECT_TICKET
from tests.bench.figures import CONNECTIONS, Figure, Load, internal_headers, wrk
from tests.support.clients import Tenant, client

BEGIN = "BEGIN READ ONLY, ISOLATION LEVEL REPEATABLE READ; SELECT set_config('relaydesk.organization_id', '{}', true)"

Read = Callable[[asyncpg.Connection], Awaitable[None]]


async def measure(stack: Stack, tenants: Sequence[Tenant], seconds: float) -> list[Figure]:
    tenant = tenants[0]
    async with client(stack, tenant) as http:
        body = {"title": "Read past every cache", "description": "word " * 60}
        async with http.post("/api/tickets", json=body) as answer:
            path = answer.headers["Location"]
            token = {"Relaydesk-Consistency": answer.headers["Relaydesk-Consistency"]}
        async with http.get(path, headers=token) as answer:
            assert answer.status == 200
    organization_id = uuid.UUID(tenant.organization_id)
    ticket_id = uuid.UUID(path.rpartition("/")[2])
    begin = BEGIN.format(organization_id)

    async def with_tenant(connection: asyncpg.Connection) -> None:
        await connection.execute(begin)
        await connection.fetchrow(SELECT_TICKET, organization_id, ticket_id)
        await connection.fetchval(READ_POSITION)
        await connection.execute("COMMIT")

    async def alone(connection: asyncpg.Connection) -> None:
        await connection.fetchrow(SELECT_TICKET, organization_id, ticket_id)

    (reads_from,) = stack.replica_urls
    replica = stack.parts["replica-1"]
    assert isinstance(replica, PostgresServer)
    superuser = replica.url("tickets", superuser=True)
    ours = await wrk(stack.service_url("tickets") + path, seconds, headers=internal_headers(stack, tenant))
    bare = await load(reads_from, APP_ROLE, with_tenant, seconds)
    unguarded = await load(superuser, "postgres", with_tenant, seconds)
    single = await load(superuser, "postgres", alone, seconds)
    name = "the same statements by asyncpg"
    return [
        Figure("read one ticket at the tickets service", ours.rate, bare.rate, name, "requests/s"),
        Figure("read one ticket at the tickets service: P99 at the client", ours.p99, bare.p99, name, "ms"),
        Figure("read by asyncpg under row-level security", bare.rate, unguarded.rate, "without it", "reads/s"),
        Figure(
            "read by asyncpg in the transaction that row-level security needs",
            bare.rate,
            single.rate,
            "the SELECT alone, without it",
            "reads/s",
        ),
    ]


async def load(url: str, role: str, read: Read, seconds: float) -> Load:
    """As many clients as `wrk` has, each with a connection of its own."""
    durations: list[float] = []
    pool = await create_pool(url, role=role, service="bench", minimum=CONNECTIONS, maximum=CONNECTIONS, writes=False)
    deadline = time.monotonic() + seconds

    async def reader() -> None:
        async with pool.acquire() as connection:
            while time.monotonic() < deadline:
                started = time.perf_counter()
                await read(connection)
                durations.append((time.perf_counter() - started) * 1000)

    try:
        await asyncio.gather(*(reader() for _ in range(CONNECTIONS)))
    finally:
        await pool.close()
    durations.sort()
    count = len(durations)
    return Load(count / seconds, durations[count // 2], durations[int(count * 0.99)])

"""Creating tickets in batches of 500 at the tickets service, beside the same statements by bare asyncpg.

The baseline has the same role, transactions, round trips and events; it lacks HTTP, authentication, and the decoding
and judging of rows. Rates are in tickets per second.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import aiohttp
import asyncpg
import msgspec

from infra.local.stack import Stack
from libs.common.events import EventTypes
from libs.common.identity import Principal
from libs.common.models import BULK_ROWS, NewTicket
from libs.common.postgres import create_pool, transaction_on
from services.tickets import outbox, store_bulk, store_tickets
from services.tickets.database import APP_ROLE
from services.tickets.store_servers import SERVER_POSITION
from tests.bench.create import DESCRIPTION, TITLE
from tests.bench.figures import Figure, internal_headers, principal_of
from tests.support.clients import Tenant

WRITERS = 4  # one an organization: its creations wait for one another


async def measure(stack: Stack, tenants: Sequence[Tenant], seconds: float) -> list[Figure]:
    ours = await _through_the_service(stack, tenants[:WRITERS], seconds)
    bare = await _bare(stack, tenants[:WRITERS], seconds)
    return [Figure("create tickets in bulk", ours, bare, "the same statements by asyncpg", "tickets/s")]


async def _rate(writers: Sequence[Callable[[], Awaitable[None]]], seconds: float) -> float:
    """Tickets per second of writers that each create a batch again and again."""
    batches = 0
    started = time.monotonic()

    async def repeat(create_batch: Callable[[], Awaitable[None]]) -> None:
        nonlocal batches
        while time.monotonic() < started + seconds:
            await create_batch()
            batches += 1

    await asyncio.gather(*(repeat(create_batch) for create_batch in writers))
    return batches * BULK_ROWS / (time.monotonic() - started)


async def _through_the_service(stack: Stack, tenants: Sequence[Tenant], seconds: float) -> float:
    row = {"title": TITLE, "description": DESCRIPTION, "priority": "high"}
    body = msgspec.json.encode({"tickets": [row] * BULK_ROWS})
    async with aiohttp.ClientSession(stack.service_url("tickets")) as session:

        def writer(tenant: Tenant) -> Callable[[], Awaitable[None]]:
            headers = {**internal_headers(stack, tenant), "Content-Type": "application/json"}

            async def create_batch() -> None:
                async with session.post("/api/tickets/bulk", data=body, headers=headers) as answer:
                    answer.raise_for_status()
                    await answer.read()

            return create_batch

        return await _rate([writer(tenant) for tenant in tenants], seconds)


async def _bare(stack: Stack, tenants: Sequence[Tenant], seconds: float) -> float:
    pool = await create_pool(
        stack.tickets_database_url, role=APP_ROLE, service="bench", minimum=WRITERS, maximum=WRITERS
    )

    def writer(tenant: Tenant) -> Callable[[], Awaitable[None]]:
        principal = principal_of(tenant)

        async def create_batch() -> None:
            async with pool.acquire() as connection:
                async with transaction_on(connection, organization_id=principal.organization_id):
                    await _insert(connection, principal)
                await connection.fetchrow(SERVER_POSITION)

        return create_batch

    try:
        return await _rate([writer(tenant) for tenant in tenants], seconds)
    finally:
        await pool.close()


async def _insert(connection: asyncpg.Connection, principal: Principal) -> None:
    drawn = await store_bulk.lock_numbers(connection, principal.organization_id)
    await store_bulk.known_external_ids(connection, principal.organization_id, [])
    new = NewTicket(title=TITLE, description=DESCRIPTION)
    tickets, events = [], []
    for offset, (ticket_id, event_id) in enumerate(await store_bulk.new_ids(connection, BULK_ROWS), start=1):
        row = {"ticket_id": ticket_id, "number": drawn["last_ticket_number"] + offset, "at": drawn["at"]}
        ticket = store_tickets.new_ticket(row, principal.organization_id, principal.user_id, new)
        tickets.append(ticket)
        events.append(outbox.row(EventTypes.CREATED, ticket, event_id=event_id, principal=principal))
    await store_bulk.insert_tickets(connection, tickets, events)

"""Creating a ticket at the tickets service and through the gateway, beside the same insert by bare asyncpg.

The baseline has the same role, transaction, round trips and statements, and as many writers in as many organizations
(an organization's creations wait for one another: numbers have no gaps); it lacks HTTP, authentication, validation
and the encoding of events.
"""

import asyncio
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import asyncpg
import msgspec

from infra.local.stack import Stack
from libs.common.postgres import create_pool, transaction_on
from services.tickets.database import APP_ROLE
from services.tickets.store_servers import SERVER_POSITION
from services.tickets.store_tickets import INSERT_TICKET, NEXT_NUMBER
from tests.bench.figures import Figure, Load, internal_headers, wrk
from tests.support.clients import Tenant

ORGANIZATIONS = 8
WRITERS = 32
JSON = {"Content-Type": "application/json"}
TITLE = "The printer on the second floor burns"
DESCRIPTION = "Since this morning there is smoke from tray two. " * 6

# wrk takes one set of headers from the command line, so the organizations take turns in a script.
SCRIPT = """
local headers = {%s}
local turn = 0
request = function()
  turn = turn %% #headers + 1
  return wrk.format("POST", "/api/tickets", headers[turn], [==[%s]==])
end
"""


async def measure(stack: Stack, tenants: Sequence[Tenant], seconds: float) -> list[Figure]:
    bare = await _bare(stack, tenants, seconds)
    headers = [internal_headers(stack, tenant) for tenant in tenants]
    service = await load(stack.service_url("tickets"), headers, seconds)
    gateway = await load(stack.service_url("gateway"), [tenant.headers for tenant in tenants], seconds)
    name = "the same statements by asyncpg"
    return [
        Figure("create a ticket at the tickets service", service.rate, bare.rate, name, "requests/s"),
        Figure("create a ticket through the gateway", gateway.rate, bare.rate, name, "requests/s"),
        Figure("create a ticket through the gateway: P50 at the client", gateway.p50, bare.p50, name, "ms"),
        Figure("create a ticket through the gateway: P99 at the client", gateway.p99, bare.p99, name, "ms"),
    ]


async def load(url: str, headers: Sequence[Mapping[str, str]], seconds: float) -> Load:
    """Creations over HTTP, the organizations in turn."""
    body = msgspec.json.encode({"title": TITLE, "description": DESCRIPTION, "priority": "high"}).decode()
    lines = [
        "{%s}" % ", ".join(f'["{name}"] = "{value}"' for name, value in (JSON | one).items())  # noqa: UP031 (braces)
        for one in (dict(each) for each in headers)
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(SCRIPT % (", ".join(lines), body))
        file.flush()
        return await wrk(url, seconds, script=Path(file.name), connections=WRITERS)


async def _bare(stack: Stack, tenants: Sequence[Tenant], seconds: float) -> Load:
    pool = await create_pool(
        stack.tickets_database_url, role=APP_ROLE, service="bench", minimum=WRITERS, maximum=WRITERS
    )
    durations: list[float] = []
    deadline = time.monotonic() + seconds

    async def writer(tenant: Tenant) -> None:
        organization_id = uuid.UUID(tenant.organization_id)
        user_id = uuid.UUID(tenant.users[0]["id"])
        async with pool.acquire() as connection:
            while time.monotonic() < deadline:
                started = time.perf_counter()
                await _insert(connection, organization_id, user_id)
                durations.append((time.perf_counter() - started) * 1000)

    try:
        await asyncio.gather(*(writer(tenants[n % len(tenants)]) for n in range(WRITERS)))
    finally:
        await pool.close()
    durations.sort()
    count = len(durations)
    return Load(count / seconds, durations[count // 2], durations[int(count * 0.99)])


async def _insert(connection: asyncpg.Connection, organization_id: uuid.UUID, user_id: uuid.UUID) -> None:
    async with transaction_on(connection, organization_id=organization_id):
        drawn = await connection.fetchrow(NEXT_NUMBER, organization_id)
        await connection.execute(
            INSERT_TICKET,
            *(organization_id, drawn["ticket_id"], drawn["number"], TITLE, DESCRIPTION, 1, 3, user_id),
            *(None, "{}", 1, drawn["at"], drawn["event_id"], "ticket.created.v1", user_id, "service", "bench", "{}"),
            *(drawn["ticket_id"].int % 64, _event(drawn, organization_id, user_id), None),
        )
    await connection.fetchrow(SERVER_POSITION)


def _event(drawn: asyncpg.Record, organization_id: uuid.UUID, user_id: uuid.UUID) -> bytes:
    """A value the relay and the consumers take, for they run beside the baseline as well."""
    ticket = {
        "id": drawn["ticket_id"],
        "number": drawn["number"],
        "organization_id": organization_id,
        "title": TITLE,
        "description": DESCRIPTION,
        "status": "open",
        "priority": "high",
        "user_id": user_id,
        "assigned_to": None,
        "external_id": None,
        "fields": {},
        "version": 1,
        "created_at": drawn["at"],
        "updated_at": drawn["at"],
    }
    actor = {"id": user_id, "kind": "service", "name": "bench"}
    return msgspec.json.encode({"ticket": ticket, "changed": [], "actor": actor})

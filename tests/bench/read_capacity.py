"""Reads per second without replicas and with two, as `Database.read` spreads them.

All servers, the service and the load share the machine's cores here, so real reads show what the machine can do and
not what the servers could. The second figure takes the machine out of it: a read that keeps a session busy for 10 ms
without using a core, on servers that have 4 sessions each for us.
"""

import asyncio
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import asyncpg

from infra.local.stack import Stack
from libs.common import settings
from libs.common.consistency import Requirement
from services.tickets.database import Database
from services.tickets.settings import DatabaseSettings
from services.tickets.store_tickets import SELECT_TICKET
from tests.bench.figures import Figure
from tests.support.clients import Tenant
from tests.support.tickets import tickets_database

CLIENTS = 32
SESSIONS = 4
BUSY = "SELECT pg_sleep(0.01)"
EXTERNAL = {  # not used
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "REDIS_URL": "redis://127.0.0.1:1",
    "CACHE_REDIS_URL": "redis://127.0.0.1:1",
}

Work = Callable[[asyncpg.Connection], Awaitable[object]]


async def measure(_stack: Stack, _tenants: Sequence[Tenant], seconds: float) -> list[Figure]:
    """On servers of its own: a primary and two replicas."""
    with tempfile.TemporaryDirectory(prefix="relaydesk-bench-") as folder:
        stack = Stack(Path(folder) / "stack", environ=EXTERNAL, services=(), replicas=2)
        try:
            async with stack, tickets_database(stack) as desk:
                with_replicas = desk.environment | {"TICKETS_POOL_MAXIMUM": str(SESSIONS)}
                alone = with_replicas | {"TICKETS_REPLICA_URLS": ""}
                return [
                    Figure(
                        f"{what} with 2 replicas",
                        await _rate(with_replicas, work, seconds),
                        await _rate(alone, work, seconds),
                        "the primary alone",
                        "reads/s",
                    )
                    for what, work in (("real reads on shared cores", _real), ("reads that keep a server busy", _busy))
                ]
        finally:
            stack.remove()


async def _real(connection: asyncpg.Connection) -> object:
    return await connection.fetchrow(SELECT_TICKET, uuid.UUID(int=1), uuid.UUID(int=2))


async def _busy(connection: asyncpg.Connection) -> object:
    return await connection.fetchval(BUSY)


async def _rate(environment: dict[str, str], work: Work, seconds: float) -> float:
    """Reads per second of as many clients as keep all servers busy."""
    loaded = settings.load(DatabaseSettings, environment, prefix="TICKETS_DATABASE_")
    count = 0

    async def reader(database: Database) -> None:
        nonlocal count
        while time.monotonic() < deadline:
            await database.read(uuid.UUID(int=1), Requirement(), work)
            count += 1

    async with Database.open(loaded) as database:
        while not all(replica.usable for replica in database.servers.replicas):
            await asyncio.sleep(0.05)
        deadline = time.monotonic() + seconds
        await asyncio.gather(*(reader(database) for _ in range(CLIENTS)))
    return count / seconds

"""From the change in PostgreSQL to any subscriber of Kafka, at 500 writes a second.

The clock starts at the event's `time`, which is taken in the transaction just before COMMIT, and stops when a plain
consumer has the message. The relay is a process of its own: nobody wakes it, it finds the rows when it looks.
"""

import asyncio
import contextlib
import datetime as dt
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiokafka

from infra.local.stack import Stack
from libs.common.events import TOPIC
from libs.common.identity import Principal
from libs.common.models import NewTicket
from services.tickets.database import Database
from services.tickets.relay import POLL_SECONDS
from services.tickets.tickets import create_ticket
from tests.bench.figures import Figure
from tests.support.clients import Tenant, foreign_consumer, headers_of
from tests.support.tickets import TicketsDatabase, eventually, gauge, running_relay, tickets_database

WRITES_PER_SECOND = 500
ORGANIZATIONS = 8
DESCRIPTION = "Since this morning there is smoke from tray two. " * 6


async def measure(_stack: Stack, _tenants: Sequence[Tenant], seconds: float) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="relaydesk-commit-") as folder:
        servers = Stack(Path(folder) / "stack", services=(), replicas=0)
        try:
            async with servers, tickets_database(servers) as database:
                delays = await _delays(servers, database, Path(folder) / "relay.log", seconds)
        finally:
            servers.remove()
    name = "the relay's poll"
    poll = POLL_SECONDS * 1000
    at = f"commit to Kafka at {WRITES_PER_SECOND}/s"
    return [
        Figure(f"{at}: P50", delays[len(delays) // 2], poll, name, "ms"),
        Figure(f"{at}: P99", delays[int(len(delays) * 0.99)], poll, name, "ms"),
    ]


async def _delays(servers: Stack, tickets: TicketsDatabase, log: Path, seconds: float) -> list[float]:
    """Sorted, in milliseconds."""
    people = [person for _ in range(ORGANIZATIONS) for person in await tickets.organization()]
    delays: list[float] = []
    settings = tickets.settings(TICKETS_POOL_MINIMUM="20", TICKETS_POOL_MAXIMUM="20")
    async with running_relay(tickets, log) as relay, Database.open(settings) as database:

        async def all_owned() -> bool:
            return await gauge(relay, "relay_shards_owned") == 64

        await eventually(all_owned)
        async with foreign_consumer(servers, TOPIC) as consumer:
            reading = asyncio.create_task(_read(consumer, delays))
            count = int(seconds * WRITES_PER_SECOND)
            await asyncio.gather(*(_write(database, people[n % len(people)], n) for n in range(count)))

            async def all_read() -> bool:
                return len(delays) >= count

            await eventually(all_read)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
    return sorted(delays)


async def _write(database: Database, principal: Principal, number: int) -> None:
    """At its time, whether the ones before are done or not."""
    await asyncio.sleep(number / WRITES_PER_SECOND)
    await create_ticket(database, principal, NewTicket(title=f"Ticket {number}", description=DESCRIPTION))


async def _read(consumer: aiokafka.AIOKafkaConsumer, delays: list[float]) -> None:
    async for message in consumer:
        written = dt.datetime.fromisoformat(headers_of(message)["ce_time"]).timestamp()
        delays.append((time.time() - written) * 1000)

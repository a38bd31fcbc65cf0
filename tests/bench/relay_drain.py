"""How fast a relay empties a full outbox, beside a producer that sends the same events from memory.

Ours reads the rows, keeps every ticket's order, waits for Kafka and deletes; the baseline only sends. One backlog is of
many tickets, as after an outage; another of sixteen that everybody changes, where one version waits for the other.
Both run on servers of their own, for the platform's consumers would index and announce what is sent.
"""

import asyncio
import datetime as dt
import random
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import aiokafka

from infra.local.stack import Stack
from libs.common import events, kafka
from libs.common.consistency import Position
from libs.common.events import Actor, TicketEventData, encode_data
from libs.common.models import Priority, Status, Ticket
from services.tickets.outbox import shard_of
from services.tickets.relay import BATCH_ROWS
from tests.bench.figures import Figure
from tests.support.clients import Tenant
from tests.support.tickets import TicketsDatabase, running_relay, tickets_database

BACKLOG = 100_000
HOT_BACKLOG = 20_000
HOT_TICKETS = 16
WORDS = ["printer", "smoke", "tray", "floor", "since", "morning", "paper", "toner", "office", "again", "nobody", "door"]

# Ticket after ticket, version after version; values take turns.
FILL = """
INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, created_at)
SELECT ids[1], ids[n % cardinality(ids) + 1], n / cardinality(ids) + 1, shards[n % cardinality(ids) + 1], uuidv7(),
       'ticket.updated.v1', payloads[n % cardinality(payloads) + 1], clock_timestamp()
FROM generate_series(0, $1::int - 1) AS n,
     (SELECT $2::uuid[] AS ids, $3::smallint[] AS shards, $4::bytea[] AS payloads) AS given"""


async def measure(_stack: Stack, _tenants: Sequence[Tenant], _seconds: float) -> list[Figure]:
    values = [_value(random.Random(number)) for number in range(500)]
    with tempfile.TemporaryDirectory(prefix="relaydesk-drain-") as folder:
        servers = Stack(Path(folder) / "stack", services=(), replicas=0)
        try:
            async with servers, tickets_database(servers) as database:
                log = Path(folder) / "relay.log"
                many = await _drain(database, log, values, backlog=BACKLOG, tickets=BACKLOG)
                hot = await _drain(database, log, values, backlog=HOT_BACKLOG, tickets=HOT_TICKETS)
                bare = await _bare(servers, values)
        finally:
            servers.remove()
    name = "a producer alone"
    return [
        Figure(f"relay: drain {BACKLOG:,} events of as many tickets", many, bare, name, "events/s"),
        Figure(f"relay: drain {HOT_BACKLOG:,} events of {HOT_TICKETS} tickets", hot, bare, name, "events/s"),
    ]


async def _drain(database: TicketsDatabase, log: Path, values: Sequence[bytes], *, backlog: int, tickets: int) -> float:
    ids = [uuid.uuid4() for _ in range(tickets)]
    await database.superuser.execute(FILL, backlog, ids, [shard_of(one) for one in ids], values, timeout=300)
    waiting = "SELECT count(*) FROM outbox"
    async with running_relay(database, log):
        while (rows := await database.superuser.fetchval(waiting)) == backlog:
            await asyncio.sleep(0.01)
        started = time.monotonic()
        while await database.superuser.fetchval("SELECT EXISTS (SELECT FROM outbox)"):
            await asyncio.sleep(0.02)
        return int(rows) / (time.monotonic() - started)


async def _bare(servers: Stack, values: Sequence[bytes]) -> float:
    """As many at a time as the relay has in hand, to the topic of the relay, which runs no more."""
    producer = kafka.producer(servers.kafka_bootstrap_servers)
    await producer.start()
    try:
        keys = [str(uuid.uuid4()).encode() for _ in range(BACKLOG)]
        headers = _headers()
        started = time.monotonic()
        for start in range(0, BACKLOG, BATCH_ROWS):
            batch = range(start, start + BATCH_ROWS)
            await asyncio.gather(*[await _send(producer, values[n % len(values)], keys[n], headers) for n in batch])
        return BACKLOG / (time.monotonic() - started)
    finally:
        await producer.stop()


async def _send(
    producer: aiokafka.AIOKafkaProducer, value: bytes, key: bytes, headers: events.Headers
) -> "asyncio.Future[object]":
    return await producer.send(events.TOPIC, value=value, key=key, headers=headers)  # type: ignore[no-any-return]


def _headers() -> events.Headers:
    return events.headers(
        event_id=uuid.uuid4(),
        event_type="ticket.updated.v1",
        time=dt.datetime.now(dt.UTC),
        ticket_id=uuid.uuid4(),
        organization_id=uuid.uuid4(),
        version=1,
        position=Position(1, 1),
        traceparent=None,
    )


def _value(chance: random.Random) -> bytes:
    """About 900 bytes, no two alike: the same value over and over would compress to nothing."""
    some = uuid.UUID(int=chance.getrandbits(128))
    now = dt.datetime.now(dt.UTC)
    ticket = Ticket(
        id=some,
        number=chance.randrange(100_000),
        organization_id=some,
        title=" ".join(chance.choices(WORDS, k=6)),
        description=" ".join(chance.choices(WORDS, k=40)),
        status=Status.OPEN,
        priority=Priority.HIGH,
        user_id=some,
        assigned_to=None,
        external_id=None,
        fields={},
        version=1,
        created_at=now,
        updated_at=now,
    )
    return encode_data(TicketEventData(ticket=ticket, changed=["title"], actor=Actor(some, "api_key", "bench")))

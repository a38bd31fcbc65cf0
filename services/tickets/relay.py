"""The relay: outbox rows to Kafka, every ticket's events in the order of its versions.

Any number of relays share 64 shards by leases on the database's clock. An owner reads the existing rows of its
shards by position, sends a ticket's next version only when the one before is acknowledged, and deletes what is if it
still owns their shard in the same epoch. A relay that lost a lease and wakes up can only replay: everybody starts
from the existing rows, so a version is never published for the first time after a newer one. After any send error
the producer is thrown away and the rows are read again.

An idempotent producer does not keep that order by itself: when its first batch for a partition is refused, the
broker knows nothing of it and accepts the second.
"""

import asyncio
import collections
import contextlib
import datetime as dt
import time
import uuid
from collections.abc import AsyncIterator, Sequence

import aiokafka
import asyncpg
import structlog
from aiokafka.errors import MessageSizeTooLargeError
from prometheus_client import Counter, Gauge

from libs.common import background, events, kafka
from libs.common.consistency import Position
from libs.common.postgres import create_pool
from services.tickets import store_relay
from services.tickets.database import RELAY_ROLE
from services.tickets.outbox import SHARDS
from services.tickets.servers import Fence
from services.tickets.settings import Settings

LEASE = dt.timedelta(seconds=6)
RENEW_SECONDS = 1.5
POLL_SECONDS = 0.1
BATCH_ROWS = 1000
SEND_SECONDS = 15.0

OUTBOX_ROWS = Gauge("outbox_rows", "Rows in the outbox that wait for Kafka, counted up to a million.")
OUTBOX_AGE = Gauge("outbox_oldest_age_seconds", "Age of the oldest row in the outbox.")
SHARDS_OWNED = Gauge("relay_shards_owned", "Shards that this relay holds a lease of.")
PUBLISHED = Counter("relay_published_total", "Events acknowledged by Kafka.")
PUBLISH_ERRORS = Counter("relay_publish_errors_total", "Batches that Kafka did not acknowledge.")

log = structlog.get_logger()


class Relay:
    """One relay. `wake` may be called from the same event loop after a COMMIT; a poll of 100 ms does the rest."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._id = uuid.uuid4()
        self._fence = Fence()
        self._epochs: dict[int, int] = {}
        self._lease_ends = 0.0
        self._more = asyncio.Event()
        self._refused = False

    def wake(self) -> None:
        self._more.set()

    async def run(self) -> None:
        """Work until cancelled; then give the leases up. Raises on every failure, to be started again."""
        pool = await create_pool(
            self._settings.database_url,
            role=RELAY_ROLE,
            service="tickets-relay",
            minimum=1,
            maximum=3,
            check=self._fence.check,
        )
        try:
            await self._measure(pool)  # also while Kafka is away
            await kafka.ensure_topic(
                self._settings.kafka_bootstrap,
                partitions=self._settings.topic_partitions,
                replication=self._settings.topic_replication,
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_leases(pool))
                tasks.create_task(self._observe(pool))
                tasks.create_task(background.keep_running("relay_publish", lambda: self._publish(pool)))
        finally:
            await self._leave(pool)

    async def _keep_leases(self, pool: asyncpg.Pool) -> None:
        """Renew our leases, take free shards up to our share, give back what exceeds it."""
        while True:
            started = time.monotonic()
            async with pool.acquire() as connection:
                await store_relay.heartbeat(connection, self._id)
                epochs = await store_relay.renew_leases(connection, self._id, LEASE)
                live = max(1, await store_relay.count_instances(connection, LEASE))
                share = -(-SHARDS // live)
                if len(epochs) < share:
                    epochs |= await store_relay.claim_leases(connection, self._id, LEASE, share - len(epochs))
                elif len(epochs) > share:
                    surplus = sorted(epochs)[share:]
                    epochs = {shard: epoch for shard, epoch in epochs.items() if shard not in surplus}
                    # Rows of these shards that are being sent now are replayed by the next owner: legal.
                    await store_relay.release_leases(connection, self._id, surplus)
            if epochs.keys() != self._epochs.keys():
                log.info("shards_owned", count=len(epochs), relays=live)
            self._epochs = epochs
            self._lease_ends = started + LEASE.total_seconds()
            SHARDS_OWNED.set(len(epochs))
            await asyncio.sleep(RENEW_SECONDS)

    async def _publish(self, pool: asyncpg.Pool) -> None:
        """Send until something fails. After that events go in batches of one, until all in hand are through.

        An event that Kafka refuses for good takes no other down with it that way; it is tried again for ever.
        """
        if self._refused:
            async with self._producer(batch_bytes=1) as producer:
                await self._send(pool, producer)
            self._refused = False
        async with self._producer(batch_bytes=kafka.BATCH_BYTES) as producer:
            while True:
                self._more.clear()
                if await self._send(pool, producer) < BATCH_ROWS:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_SECONDS):
                            await self._more.wait()

    @contextlib.asynccontextmanager
    async def _producer(self, *, batch_bytes: int) -> AsyncIterator[aiokafka.AIOKafkaProducer]:
        producer = kafka.producer(self._settings.kafka_bootstrap, batch_bytes=batch_bytes)
        try:
            await background.within(SEND_SECONDS, producer.start())
            yield producer
        finally:
            await kafka.discard(producer)

    async def _send(self, pool: asyncpg.Pool, producer: aiokafka.AIOKafkaProducer) -> int:
        """Send the first rows of our shards, delete those that are acknowledged, and return how many there were.

        Raises:
            ConnectionError: when one was not acknowledged. The producer is of no use any more.
            SupersededError: for rows of a primary from before a promotion.
        """
        epochs = dict(self._epochs) if time.monotonic() < self._lease_ends else {}
        if not epochs:
            return 0
        async with pool.acquire() as connection:
            rows = await store_relay.select_rows(connection, list(epochs), BATCH_ROWS)
        if not rows:
            return 0
        self._fence.accept(rows[0]["timeline"])
        acknowledged: list[int] = []
        for wave in _waves(rows):
            told = await self._acknowledged(producer, wave)
            acknowledged += told
            if len(told) < len(wave):
                break
        if acknowledged:
            async with pool.acquire() as connection:
                await store_relay.delete_rows(connection, self._id, epochs, acknowledged)
            PUBLISHED.inc(len(acknowledged))
        if len(acknowledged) < len(rows):
            PUBLISH_ERRORS.inc()
            self._refused = True
            raise ConnectionError(f"Kafka acknowledged {len(acknowledged)} of {len(rows)} events")
        return len(rows)

    async def _acknowledged(self, producer: aiokafka.AIOKafkaProducer, rows: Sequence[asyncpg.Record]) -> list[int]:
        """Send `rows`, each of another ticket, and return the positions of those that Kafka acknowledged."""
        futures: list[asyncio.Future[object]] = []

        async def send() -> None:
            for row in rows:
                futures.append(await self._send_row(producer, row))  # noqa: PERF401 (what was sent must be known when it fails)
            await asyncio.gather(*futures, return_exceptions=True)

        try:
            await background.within(SEND_SECONDS, send())
        except (TimeoutError, aiokafka.errors.KafkaError) as error:
            log.warning("publish_failed", error=repr(error))
        return [row["position"] for row, future in zip(rows, futures, strict=False) if _succeeded(future)]

    async def _send_row(self, producer: aiokafka.AIOKafkaProducer, row: asyncpg.Record) -> "asyncio.Future[object]":
        headers = events.headers(
            event_id=row["event_id"],
            event_type=row["type"],
            time=row["created_at"],
            ticket_id=row["ticket_id"],
            organization_id=row["organization_id"],
            version=row["version"],
            position=Position(row["timeline"], row["lsn"]),
            traceparent=row["traceparent"],
        )
        try:
            return await producer.send(  # type: ignore[no-any-return]
                events.TOPIC, value=row["data"], key=str(row["ticket_id"]).encode(), headers=headers
            )
        except MessageSizeTooLargeError:
            log.exception("event_too_large", position=row["position"], bytes=len(row["data"]))
            raise

    async def _observe(self, pool: asyncpg.Pool) -> None:
        while True:
            await self._measure(pool)
            await asyncio.sleep(RENEW_SECONDS)

    async def _measure(self, pool: asyncpg.Pool) -> None:
        async with pool.acquire() as connection:
            rows, age = await store_relay.backlog(connection)
        OUTBOX_ROWS.set(rows)
        OUTBOX_AGE.set(age)

    async def _leave(self, pool: asyncpg.Pool) -> None:
        SHARDS_OWNED.set(0)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(3), pool.acquire() as connection:
                await store_relay.release_leases(connection, self._id, list(self._epochs))
                await store_relay.forget_instances(connection, self._id, LEASE)
        self._epochs = {}
        pool.terminate()


def _waves(rows: Sequence[asyncpg.Record]) -> list[list[asyncpg.Record]]:
    """Every ticket's first row, then every ticket's second, and so on."""
    waves: list[list[asyncpg.Record]] = []
    seen: dict[uuid.UUID, int] = collections.defaultdict(int)
    for row in rows:
        number = seen[row["ticket_id"]]
        seen[row["ticket_id"]] += 1
        if number == len(waves):
            waves.append([])
        waves[number].append(row)
    return waves


def _succeeded(future: "asyncio.Future[object]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None

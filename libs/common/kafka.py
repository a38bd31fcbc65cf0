"""Kafka: the topic, and a consumer whose offsets follow its effects.

A consumer group applies batches: decode → effect and bookkeeping in one transaction → commit offsets. What cannot
be decoded or applied goes to `<topic>.<group>.dlq` with the reason in its headers; everything else waits and is
tried again, never acknowledged unapplied.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

import aiokafka
import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, ProducerClosed, TopicAlreadyExistsError, for_code
from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind

from libs.common import background, tracing
from libs.common.events import TOPIC, EventError, TicketEvent, decode
from libs.common.metrics import CONSUMED_EVENTS, CONSUMER_LAG

BATCH_EVENTS = 500
# Of events before compression. A producer has one request under way at a time, with one batch a partition: at the
# library's 16 kB a full outbox drains at a third of the rate.
BATCH_BYTES = 64 * 1024
_POLL_MS = 1000
_APPLY_SECONDS = 60.0
_STOP_SECONDS = 5.0
_SEND_SECONDS = 10.0
_REQUEST_MS = 10_000
_MESSAGE_BYTES = 2 * 1024 * 1024
_DEAD_LETTER_BYTES = 2 * _MESSAGE_BYTES  # whatever fits into the topic fits with its reason
_RETENTION_MS = 7 * 24 * 3600 * 1000
log = structlog.get_logger()


class EventsRejected(Exception):  # noqa: N818 (it is an answer, not a failure of ours)
    """Raised by a consumer's effect for events of a batch that can never be applied, each with its reason."""

    def __init__(self, *rejections: tuple[TicketEvent, str]) -> None:
        super().__init__("; ".join(reason for _event, reason in rejections))
        self.rejections = rejections


Apply = Callable[[Sequence[TicketEvent]], Awaitable[None]]


async def ensure_topic(bootstrap: str, *, partitions: int, replication: int, name: str = TOPIC) -> None:
    """Create the topic if it is missing.

    A keyed topic must never gain partitions (keys would move), so an existing one with another count is refused.

    Raises:
        RuntimeError: for a topic with another number of partitions.
        aiokafka.errors.KafkaError: when the broker does not answer.
    """
    async with _admin(bootstrap) as admin:
        await _create_topic(admin, name, partitions, replication)
        found = len((await admin.describe_topics([name]))[0]["partitions"])
        if found not in {0, partitions}:
            raise RuntimeError(
                f"topic {name} has {found} partitions and {partitions} are configured; "
                "the partitions of a keyed topic cannot change: use a new topic or the old count"
            )


async def _ensure_dead_letters(bootstrap: str, *, name: str, source: str) -> None:
    """Create the topic `name`, replicated as `source` is, if it is missing."""
    async with _admin(bootstrap) as admin:
        partitions = (await admin.describe_topics([source]))[0]["partitions"]
        await _create_topic(admin, name, 1, len(partitions[0]["replicas"]), message_bytes=_DEAD_LETTER_BYTES)


async def _create_topic(
    admin: AIOKafkaAdminClient, name: str, partitions: int, replication: int, *, message_bytes: int = _MESSAGE_BYTES
) -> None:
    topic = NewTopic(
        name,
        partitions,
        replication,
        topic_configs={
            "retention.ms": str(_RETENTION_MS),
            "min.insync.replicas": str(max(1, replication - 1)),
            "compression.type": "producer",
            "max.message.bytes": str(message_bytes),
        },
    )
    response = await admin.create_topics([topic])
    for _topic, code, *message in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise error(*message)


async def check(bootstrap: str, *, seconds: float) -> None:
    """Ask a broker for metadata.

    Raises:
        OSError: when none answers within `seconds`.
    """
    client = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=int(seconds * 1000))
    try:
        async with asyncio.timeout(seconds):
            await client.bootstrap()
    except KafkaError as error:
        raise ConnectionError(str(error)) from error
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def _admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=_REQUEST_MS)
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


def producer(
    bootstrap: str, *, message_bytes: int = _MESSAGE_BYTES, batch_bytes: int = BATCH_BYTES
) -> aiokafka.AIOKafkaProducer:
    """An idempotent producer. `discard` it after any error: a batch that failed has spent its sequence number.

    A batch holds events of together at most `batch_bytes`, or one that is larger.
    """
    return aiokafka.AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        enable_idempotence=True,
        acks="all",
        linger_ms=0,
        compression_type="gzip",
        max_batch_size=batch_bytes,
        max_request_size=message_bytes,
        request_timeout_ms=_REQUEST_MS,
    )


async def discard(sender: aiokafka.AIOKafkaProducer) -> None:
    """End a producer at once, with all that it has not delivered.

    `stop` waits until everything is delivered, and when that wait is given up the producer goes on trying in the
    background for as long as the process lives. What is given up here may still arrive once.
    """
    routine = sender._sender.sender_task  # noqa: SLF001 (there is no other way to it)
    if routine is not None:
        routine.cancel()
    sender._message_accumulator.fail_all(ProducerClosed())  # noqa: SLF001 (stop() would leave a task waiting for it)
    with contextlib.suppress(Exception):  # what is under way fails now and not at its timeout
        await background.within(_SEND_SECONDS, sender.client.close())
    stopping = asyncio.create_task(sender.stop())  # in a task: when its routine does not end it raises CancelledError
    await asyncio.wait({stopping}, timeout=_SEND_SECONDS)
    if not stopping.cancelled() and stopping.done() and stopping.exception() is not None:
        log.warning("producer_discarded", error=repr(stopping.exception()))


class EventConsumer:
    """One consumer group's loop over the ticket topic. `run` returns only when cancelled; it raises to be restarted.

    `apply` gets the events of one poll in the order of their partitions. It must be safe to repeat. Raising
    `EventsRejected` sends those events to the dead letters and applies the others again; any other exception leaves the
    offsets where they are.
    """

    def __init__(self, bootstrap: str, *, group: str, apply: Apply, topic: str = TOPIC) -> None:
        self._bootstrap = bootstrap
        self._group = group
        self._topic = topic
        self._apply = apply
        self._dead_letters = _DeadLetters(bootstrap, topic=f"{topic}.{group}.dlq", group=group)
        self._idle = asyncio.Event()
        self._idle.set()
        self._polled = False
        self._behind_since: float | None = None  # when the oldest was published that may not have been applied

    def lag(self) -> float | None:
        """How many seconds ago the oldest event was published that has not been applied; a second more at most.

        None while there is no consumer. While Kafka does not answer, nobody can know of newer events.
        """
        if not self._polled:
            return None
        return max(0.0, time.time() - self._behind_since) if self._behind_since is not None else 0.0

    async def run(self) -> None:
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=BATCH_EVENTS,
            request_timeout_ms=_REQUEST_MS,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=2_000,
            max_partition_fetch_bytes=4 * 1024 * 1024,
            metadata_max_age_ms=5_000,  # how soon a topic is found that did not exist at start
        )
        consumer.subscribe([self._topic], listener=_FinishBeforeRevocation(self._idle))
        try:
            await consumer.start()
            while True:
                polled = await consumer.getmany(timeout_ms=_POLL_MS, max_records=BATCH_EVENTS)
                self._polled = True
                messages = [message for batch in polled.values() for message in batch]
                if not messages:
                    self._behind_since = None
                    continue
                self._behind_since = min(message.timestamp for message in messages) / 1000
                self._idle.clear()
                try:
                    # On shutdown the batch in hand is finished, effect and offsets.
                    await background.finish(self._apply_and_commit(consumer, messages), seconds=_STOP_SECONDS)
                finally:
                    self._idle.set()
                self._behind_since = max(message.timestamp for message in messages) / 1000
        finally:
            self._polled = False
            await self._dead_letters.close()
            with contextlib.suppress(Exception):
                await background.within(_SEND_SECONDS, consumer.stop())

    async def _apply_and_commit(
        self, consumer: aiokafka.AIOKafkaConsumer, messages: Sequence[aiokafka.ConsumerRecord]
    ) -> None:
        # The watchdog: heartbeats run in the background, so a hung effect would keep its partitions.
        async with asyncio.timeout(_APPLY_SECONDS):
            await self._handle(messages)
            await consumer.commit()

    async def _handle(self, messages: Sequence[aiokafka.ConsumerRecord]) -> None:
        events: list[TicketEvent] = []
        origin: dict[int, aiokafka.ConsumerRecord] = {}
        for message in messages:
            try:
                event = decode(message.headers, message.value)
            except EventError as error:
                await self._dead_letters.send(message, str(error))
            else:
                origin[id(event)] = message
                events.append(event)
        with self._span(events):
            while events:
                try:
                    await self._apply(events)
                except EventsRejected as rejected:
                    for event, reason in rejected.rejections:
                        await self._dead_letters.send(origin.pop(id(event)), reason)
                    events = [event for event in events if id(event) in origin]
                else:
                    break
        CONSUMED_EVENTS.labels(self._group, "applied").inc(len(events))
        if events:
            CONSUMER_LAG.labels(self._group).set(max(0.0, time.time() - events[-1].time.timestamp()))

    @contextlib.contextmanager
    def _span(self, events: Sequence[TicketEvent]):  # type: ignore[no-untyped-def]  # noqa: ANN202
        """A batch of one continues its event's trace; a larger one links to each."""
        contexts = [tracing.extract({"traceparent": e.traceparent}) for e in events if e.traceparent]
        links = [Link(trace.get_current_span(context).get_span_context()) for context in contexts]
        with tracing.TRACER.start_as_current_span(
            f"process {self._topic}",
            context=contexts[0] if contexts else None,
            kind=SpanKind.CONSUMER,
            links=links[1:],
            attributes={
                "messaging.system": "kafka",
                "messaging.destination.name": self._topic,
                "messaging.consumer.group.name": self._group,
                "messaging.batch.message_count": len(events),
            },
        ):
            yield


class _DeadLetters:
    """Where a group leaves what it cannot apply. Topic and producer are made for the first one and kept."""

    def __init__(self, bootstrap: str, *, topic: str, group: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._group = group
        self._sender: aiokafka.AIOKafkaProducer | None = None

    async def send(self, message: aiokafka.ConsumerRecord, reason: str) -> None:
        """Returns once the broker has it. After an exception: `close`."""
        log.error(
            "dead_letter",
            topic=self._topic,
            partition=message.partition,
            offset=message.offset,
            key=(message.key or b"").decode("utf-8", "replace"),
            reason=reason,
        )
        await background.within(_SEND_SECONDS, self._send(message, reason))
        CONSUMED_EVENTS.labels(self._group, "dead_letter").inc()

    async def _send(self, message: aiokafka.ConsumerRecord, reason: str) -> None:
        sender = self._sender or await self._open(source=message.topic)
        await sender.send_and_wait(
            self._topic,
            value=message.value or b"",  # a message without key and value cannot be sent
            key=message.key,
            headers=[
                *((name, content or b"") for name, content in message.headers),
                ("dlq_reason", reason.encode()),
                ("dlq_topic", message.topic.encode()),
                ("dlq_partition", str(message.partition).encode()),
                ("dlq_offset", str(message.offset).encode()),
            ],
        )

    async def _open(self, *, source: str) -> aiokafka.AIOKafkaProducer:
        await _ensure_dead_letters(self._bootstrap, name=self._topic, source=source)
        self._sender = producer(self._bootstrap, message_bytes=_DEAD_LETTER_BYTES)
        await self._sender.start()
        return self._sender

    async def close(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            await discard(sender)


class _FinishBeforeRevocation(aiokafka.ConsumerRebalanceListener):  # type: ignore[misc]
    """Rebalances are eager: what is in flight is finished and committed before the partitions go."""

    def __init__(self, idle: asyncio.Event) -> None:
        self._idle = idle

    async def on_partitions_revoked(self, revoked: Collection[aiokafka.TopicPartition]) -> None:
        if revoked:
            await self._idle.wait()

    async def on_partitions_assigned(self, assigned: Collection[aiokafka.TopicPartition]) -> None:
        log.info("partitions_assigned", partitions=len(assigned))

"""The relay and a Kafka that is away, hangs, refuses messages or has another topic than ours."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from infra.local.stack import Stack
from libs.common import background
from libs.common.events import TOPIC
from libs.common.identity import Principal
from libs.common.metrics import BACKGROUND_FAILURES
from libs.common.models import BODY_BYTES, TEXT_LENGTH, TITLE_LENGTH, NewComment, NewTicket, Ticket, TicketChanges
from services.tickets import relay as relay_module
from services.tickets.comments import add_comment
from services.tickets.database import Database
from services.tickets.relay import Relay
from services.tickets.tickets import create_ticket, update_ticket
from tests.support.relays import SHARDS, assert_complete, drained, new_tickets, owns, rows_in, write_versions
from tests.support.tickets import TicketsDatabase, eventually, gauge, published, running_relay

pytestmark = pytest.mark.usefixtures("topic")


async def test_writes_go_on_while_kafka_is_away_and_drain_afterwards(
    stack: Stack, outbox: TicketsDatabase, database: Database, principal: Principal, tmp_path: Path
) -> None:
    async with running_relay(outbox, tmp_path / "relay.log") as relay:
        await eventually(owns(relay, SHARDS))
        tickets = await new_tickets(database, principal, 20)
        await eventually(lambda: drained(outbox))
        kafka = stack.parts["kafka"]
        await kafka.stop()
        try:
            await asyncio.gather(*(write_versions(database, principal, t, range(2, 5)) for t in tickets))

            async def told() -> bool:
                waiting = await gauge(relay, "outbox_rows")
                return waiting == 60 and await gauge(relay, "outbox_oldest_age_seconds") > 8

            await eventually(told)
            async with running_relay(outbox, tmp_path / "late.log") as late:  # it starts while Kafka is away

                async def late_told() -> bool:
                    return await gauge(late, "outbox_rows") == 60

                await eventually(late_told)
        finally:
            await kafka.start()
        await eventually(lambda: drained(outbox), seconds=60)

        async def empty() -> bool:
            return await gauge(relay, "outbox_rows") == 0 == await gauge(relay, "outbox_oldest_age_seconds")

        await eventually(empty)
    assert_complete(await published(stack, tickets), 4)


async def test_a_topic_with_another_number_of_partitions_is_refused(
    outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    relay = Relay(outbox.settings(TICKETS_TOPIC_PARTITIONS="5"))
    await new_tickets(database, principal, 3)
    with pytest.raises(RuntimeError, match="3 partitions and 5 are configured"):
        await relay.run()
    assert await rows_in(outbox) == 3
    assert relay_module.OUTBOX_ROWS._value.get() == 3
    assert await outbox.superuser.fetchval("SELECT count(owner) FROM relay_shards") == 0


@contextlib.asynccontextmanager
async def message_limit(stack: Stack, limit: int) -> AsyncIterator[None]:
    """The topic takes messages of at most `limit` bytes."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap_servers)
    await admin.start()

    async def set_limit(value: int) -> None:
        configs = {"max.message.bytes": str(value), "retention.ms": str(7 * 24 * 3600 * 1000)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, TOPIC, configs)])

    try:
        await set_limit(limit)
        yield
    finally:
        await set_limit(2 * 1024 * 1024)
        await admin.close()


async def test_a_version_that_kafka_refuses_is_not_overtaken_by_the_next(
    stack: Stack, outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    noise = random.Random(1).randbytes(25_000).hex()
    reply, _position = await create_ticket(database, principal, NewTicket(title="Large", description=noise))
    large = msgspec.json.decode(reply.body, type=Ticket)
    changes = TicketChanges(description="Small again")
    await update_ticket(database, principal, large.id, changes, expected_version=1)
    small = await new_tickets(database, principal, 10)
    refused = relay_module.PUBLISH_ERRORS._value
    async with message_limit(stack, 10_000):
        before = refused.get()
        async with background.running("relay", Relay(outbox.settings()).run):

            async def tried() -> bool:
                return bool(refused.get() >= before + 3) and await rows_in(outbox) == 2

            await eventually(tried)
        assert (await published(stack, [str(large.id)]))[str(large.id)] == []
    async with background.running("relay", Relay(outbox.settings()).run):
        await eventually(lambda: drained(outbox))
    assert_complete(await published(stack, [str(large.id)]), 2)
    assert_complete(await published(stack, small), 1)


async def test_the_largest_event_that_the_api_takes_fits_into_kafka(
    stack: Stack, outbox: TicketsDatabase, database: Database, principal: Principal
) -> None:
    """Every field as long as it may be, of the character that is longest in JSON, and random, so that it stays long."""
    chance = random.Random(1)

    def text(length: int) -> str:
        return "x" + "".join(map(chr, chance.choices(range(1, 8), k=length - 1)))

    new = NewTicket(
        title=text(TITLE_LENGTH),
        description=text(TEXT_LENGTH),
        external_id=text(200),
        fields={f"{number:02}{text(62)}": text(1000) for number in range(50)},
    )
    request = msgspec.json.encode(new)
    assert len(request) < BODY_BYTES
    assert msgspec.json.decode(request, type=NewTicket) == new
    await create_ticket(database, principal, new)
    ticket = await outbox.superuser.fetchval("SELECT id FROM tickets")
    await add_comment(database, principal, ticket, NewComment(text(TEXT_LENGTH)))
    assert await outbox.superuser.fetchval("SELECT max(length(data)) FROM outbox") > 1_100_000
    async with background.running("relay", Relay(outbox.settings()).run):
        await eventually(lambda: drained(outbox))
    assert_complete(await published(stack, [str(ticket)]), 2)


async def test_a_kafka_that_hangs_is_given_up_without_leaving_anything_behind(
    stack: Stack,
    outbox: TicketsDatabase,
    database: Database,
    principal: Principal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_module, "SEND_SECONDS", 0.5)
    relay = Relay(outbox.settings())
    around = asyncio.all_tasks()
    async with background.running("relay", relay.run):
        tickets = await new_tickets(database, principal, 5)
        await eventually(lambda: drained(outbox))
        failures = BACKGROUND_FAILURES.labels("relay_publish")._value
        before = failures.get()
        stack.pause("kafka")
        try:
            await asyncio.gather(*(write_versions(database, principal, t, [2]) for t in tickets))
            relay.wake()

            async def failed() -> bool:
                return bool(failures.get() >= before + 3)  # the first producer and its successors

            await eventually(failed)
        finally:
            stack.resume("kafka")
        await eventually(lambda: drained(outbox))
    assert_complete(await published(stack, tickets), 2)

    async def nothing_left() -> bool:
        return not {task for task in asyncio.all_tasks() - around if "aiokafka" in repr(task)}

    await eventually(nothing_left, seconds=5)

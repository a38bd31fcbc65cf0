"""The service as a process between real servers."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import aiokafka
import asyncpg
import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis

from infra.local.stack import Stack
from libs.common.cache.local import Entry
from libs.common.cache.search_tags import WORDS_HEADER, parts_of_search, search_tag
from libs.common.cache.store import Begun, Store
from libs.common.cache.tags import tag_key
from libs.common.cache.ticket_tags import ticket_tag, tickets_tag
from libs.common.consistency import Position
from libs.common.events import TOPIC
from libs.common.identity import HEADER, Signer
from libs.common.kafka import producer
from libs.common.models import Status
from tests.support.caching import CachedSearch
from tests.support.indexing import TicketsOwner, changed, commented, created
from tests.support.processes import TestedService, running_service
from tests.support.realtime import principal, publish
from tests.support.stack import PARTITIONS

DYING_UNTOLD = ("-m", "tests.support.search_killed_before_bump")
DYING = ("-m", "tests.support.search_killed_before_commit")
VERSIONS = "SELECT ticket_id, version, comments FROM documents WHERE organization_id = $1 ORDER BY ticket_id"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def service(
    stack: Stack, topic: str, database: str, owner: TicketsOwner, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TestedService]:
    log = tmp_path_factory.mktemp("search") / "search.log"
    async with running_service(stack, "search", log, SEARCH_TICKETS_URL=owner.url) as started:
        yield started


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 45) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def consumed_everything(stack: Stack) -> bool:
    """Whether the index's group has committed the end of every partition."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap_servers)
    consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=stack.kafka_bootstrap_servers)
    await admin.start()
    await consumer.start()
    try:
        committed = await admin.list_consumer_group_offsets("search-index")
        ends = await consumer.end_offsets([aiokafka.TopicPartition(TOPIC, number) for number in range(PARTITIONS)])
    finally:
        await consumer.stop()
        await admin.close()
    return all(
        end == 0 or (partition in committed and committed[partition].offset == end) for partition, end in ends.items()
    )


class Caller:
    """The gateway, for one organization."""

    def __init__(self, stack: Stack, url: str, organization_id: uuid.UUID) -> None:
        signer = Signer(stack.credentials.signing_key("gateway"))
        self._headers = {HEADER: signer.principal_token(principal(organization_id), "search")}
        self._url = f"{url}/api/search"

    async def get(self, **query: str) -> tuple[int, dict[str, Any]]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(self._url, params=query, headers=self._headers) as answer,
        ):
            return answer.status, await answer.json(content_type=None)

    async def words(self, text: str) -> str:
        """What the gateway is told of the words of a query."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(self._url, params={"q": text}, headers=self._headers) as answer,
        ):
            return answer.headers[WORDS_HEADER]

    async def finds(self, text: str, count: int = 1) -> bool:
        status, answer = await self.get(q=text)
        assert status == 200
        return len(answer["results"]) == count


async def test_an_event_is_searchable(stack: Stack, service: TestedService) -> None:
    organization = uuid.uuid4()
    event = created(organization, title="Printer on fire")
    last = commented(changed(event, status=Status.PENDING), "with smoke")
    await publish(stack, [event, changed(event, status=Status.PENDING), last])
    caller = Caller(stack, service.url, organization)
    await until(lambda: caller.finds("smoke"))
    status, answer = await caller.get(q="fire printer", limit="1")
    (result,) = answer["results"]
    assert status == 200
    assert answer["took_ms"] > 0
    ticket = event.data.ticket
    assert {key: result["ticket"][key] for key in ("id", "number", "title", "status", "priority")} == {
        "id": str(ticket.id),
        "number": 1,
        "title": ticket.title,
        "status": "pending",
        "priority": "normal",
    }
    assert result["highlight"] == "<mark>Printer</mark> on <mark>fire</mark>"
    assert not await Caller(stack, service.url, uuid.uuid4()).finds("fire")


async def test_tags_are_bumped_with_the_positions_of_their_events(stack: Stack, service: TestedService) -> None:
    organization = uuid.uuid4()
    first = created(organization)
    tags = [search_tag(organization), tickets_tag(organization), ticket_tag(first.data.ticket.id)]
    redis = Redis.from_url(stack.cache_redis_url)
    try:
        # A cache holds entries with these tags, loaded at an earlier position.
        store = Store(redis)
        begun = await store.begin("any", tags, None)
        assert isinstance(begun, Begun)
        stamps = tuple(value.stamp for value in begun.values)
        entry = Entry(b"", {}, Position(1, 1), Position(1, 1), stamps)
        await store.finish("any", tags, begun, entry, seconds=60)
        assert (await store.look_up("any", tags)).is_valid(None)
        await publish(stack, [first, changed(first), commented(changed(first), "news")])

        async def told() -> bool:
            values = (await store.look_up("any", tags)).values
            return {value.floor for value in values if value is not None} == {Position(1, 3).token()}

        await until(told)
        assert not (await store.look_up("any", tags)).is_valid(None)
    finally:
        await redis.aclose()


async def test_tickets_and_lists_are_invalidated_while_the_index_cannot_move(
    stack: Stack, service: TestedService, owner: TicketsOwner
) -> None:
    organization = uuid.uuid4()
    first = created(organization, title="stuck")
    second = changed(first)
    owner.add([first, second])
    owner.broken = True
    caller = Caller(stack, service.url, organization)
    redis = Redis.from_url(stack.cache_redis_url)
    try:
        await publish(stack, [second])

        async def bumped() -> bool:
            return await redis.get(tag_key(ticket_tag(first.data.ticket.id))) is not None

        await until(bumped)
        assert await redis.get(tag_key(tickets_tag(organization))) is not None
        assert await redis.get(tag_key(search_tag(organization))) is None
        assert not await caller.finds("stuck")
        owner.broken = False
        await until(lambda: caller.finds("stuck"))
    finally:
        owner.broken = False
        await redis.aclose()


@pytest.mark.parametrize("query", [{}, {"q": " "}, {"q": "x" * 501}, {"q": "a\x00b"}, {"q": "x", "limit": "51"}])
async def test_bad_parameters_are_named(stack: Stack, service: TestedService, query: dict[str, str]) -> None:
    status, problem = await Caller(stack, service.url, uuid.uuid4()).get(**query)
    assert (status, problem["code"]) == (400, "invalid_parameter")


@pytest.mark.parametrize("raw", ["q=%ff%fe", "q=%ed%a0%80", "q=%00", "q=a&q=b", "limit=5"])
async def test_no_query_string_is_an_internal_error(stack: Stack, service: TestedService, raw: str) -> None:
    signer = Signer(stack.credentials.signing_key("gateway"))
    token = signer.principal_token(principal(uuid.uuid4()), "search")
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    head = f"GET /api/search?{raw} HTTP/1.1\r\nHost: x\r\n{HEADER}: {token}\r\nConnection: close"
    writer.write(f"{head}\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.split(b" ")[1] in {b"200", b"400"}


async def test_only_the_gateway_may_ask(stack: Stack, service: TestedService) -> None:
    for token in (
        "",
        Signer(stack.credentials.signing_key("tickets")).service_token("search"),
        Signer(stack.credentials.signing_key("gateway")).principal_token(principal(uuid.uuid4()), "tickets"),
    ):
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{service.url}/api/search?q=x", headers={HEADER: token}) as answer,
        ):
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (
                401,
                "authentication_required",
            )


async def test_sigkill_between_index_and_bump_leaves_no_search_as_it_was(
    stack: Stack, service: TestedService, owner: TicketsOwner, writers: asyncpg.Pool, tmp_path: Path
) -> None:
    organization = uuid.uuid4()
    first = created(organization, title="apricot")
    caller = Caller(stack, service.url, organization)
    async with Redis.from_url(stack.cache_redis_url) as redis:
        await publish(stack, [first])
        await until(lambda: caller.finds("apricot"))
        await until(lambda: consumed_everything(stack))
        cached = CachedSearch(redis, organization, parts_of_search(organization, await caller.words("fig"), []))
        await cached.keep()
        await service.stop()
        try:
            async with running_service(
                stack, "search", tmp_path / "dying.log", script=DYING_UNTOLD, SEARCH_TICKETS_URL=owner.url
            ) as dying:
                await publish(stack, [changed(first, title="fig")])
                async with asyncio.timeout(45):
                    while dying.alive:
                        await asyncio.sleep(0.05)
            assert [row["version"] for row in await writers.fetch(VERSIONS, organization)] == [2]
            assert await cached.is_valid(), "it died before it could tell"
        finally:
            await service.start()

        async def is_old() -> bool:
            return not await cached.is_valid()

        await until(is_old)


async def test_poison_goes_to_the_dead_letters_and_the_others_go_on(stack: Stack, service: TestedService) -> None:
    organization = uuid.uuid4()
    mark = uuid.uuid4().hex
    orphan = changed(created(organization, title="orphan"))
    good = created(organization, title="survivor")
    sender = producer(stack.kafka_bootstrap_servers)
    await sender.start()
    try:
        await sender.send_and_wait(TOPIC, value=b"{", key=mark.encode(), partition=0)
    finally:
        await sender.stop()
    await publish(stack, [orphan, good])
    await until(lambda: Caller(stack, service.url, organization).finds("survivor"))
    reasons: dict[str, str] = {}
    consumer = aiokafka.AIOKafkaConsumer(
        f"{TOPIC}.search-index.dlq",
        bootstrap_servers=stack.kafka_bootstrap_servers,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            while not reasons.keys() >= {mark, str(orphan.data.ticket.id)}:
                message = await consumer.getone()
                reasons[message.key.decode()] = dict(message.headers)["dlq_reason"].decode()
    finally:
        await consumer.stop()
    assert "is missing" in reasons[mark]
    assert "does not exist" in reasons[str(orphan.data.ticket.id)]


async def test_sigkill_between_effect_and_commit_changes_nothing(
    stack: Stack, service: TestedService, owner: TicketsOwner, writers: asyncpg.Pool, tmp_path: Path
) -> None:
    organization = uuid.uuid4()
    lives = []
    for number in range(20):
        first = created(organization, title=f"durable {number}")
        lives.append([first, commented(first, f"comment {number}")])
    await service.stop()
    try:
        async with running_service(
            stack, "search", tmp_path / "dying.log", script=DYING, SEARCH_TICKETS_URL=owner.url
        ) as dying:
            await publish(stack, [event for life in lives for event in life])
            async with asyncio.timeout(45):
                while dying.alive:
                    await asyncio.sleep(0.05)
        before = [tuple(row) for row in await writers.fetch(VERSIONS, organization)]
        assert before
    finally:
        await service.start()
    await until(lambda: Caller(stack, service.url, organization).finds("durable", 20))

    await until(lambda: consumed_everything(stack))
    rows = await writers.fetch(VERSIONS, organization)
    assert {row["version"] for row in rows} == {2}
    # What had been stored was skipped when it came again, not fetched or rejected.
    assert not {life[0].data.ticket.id for life in lives} & set(owner.asked)
    after = {row["ticket_id"]: row["comments"] for row in rows}
    assert after == {life[0].data.ticket.id: f"comment {number}" for number, life in enumerate(lives)}
    assert set(before) <= {(ticket_id, 2, comments) for ticket_id, comments in after.items()} | {
        (ticket_id, 1, "") for ticket_id in after
    }

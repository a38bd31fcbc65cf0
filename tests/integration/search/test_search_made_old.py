"""Whatever a write changes in the answer of a search, it bumps a tag that the answer depends on."""

import datetime as dt
import itertools
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from infra.local.ports import HOST, free_ports
from infra.local.stack import Stack
from libs.common.cache.search_tags import (
    CHANGED_WORDS,
    Change,
    indexed,
    of_search,
    parts_of_search,
    search_tag,
    searches,
    words_header,
)
from libs.common.cache.tags import Tags, tag_key
from libs.common.consistency import Position
from libs.common.events import TicketEvent
from libs.common.kafka import EventsRejected
from libs.common.models import Priority, Status
from services.search.consumers import IndexConsumer
from services.search.documents import Documents
from services.search.queries import Queries
from services.search.store import words_of
from tests.support.caching import CachedSearch
from tests.support.indexing import TicketsOwner, changed, commented, created

WORDS = ["printer", "printers", "fire", "the", "2", "O'Neil\\x"]
TEXTS = [" ".join(words) for length in (0, 1, 2) for words in itertools.product(WORDS, repeat=length)]
QUERIES = [
    *["printer", "Fire", "the", "2", "#2", "#3", "99", "o'neil\\x", "smoke"],
    *["printer fire", "fire OR printers", "the printer", "fire 2", "2 OR fire"],
    *['"printer fire"', '"fire printer"', '"fire fire"', '"the fire"', '"printer 2"', '"fire the printer"'],
    *["-printer", "printer -fire", "fire OR -printer", '-"printer fire"', 'fire -"fire printer"', "-the"],
]
LIMITS = [1, 2, 50]
LONG_AGO = dt.timedelta(days=10)

Answers = dict[tuple[str, int], tuple[list[Any], set[str]]]


class Told(Tags):
    """Remembers what was bumped, in place of Redis."""

    def __init__(self) -> None:
        self.bumps: list[tuple[list[str], list[str], Position]] = []

    async def bump(self, tags: Sequence[str], position: Position, *, parts: Sequence[str] = ()) -> None:
        self.bumps.append((list(tags), list(parts), position))

    def take(self) -> set[str]:
        """Everything bumped since the last time; parts never without what is watched."""
        bumped: set[str] = set()
        for tags, parts, _position in self.bumps:
            assert any(tag.endswith(":search") for tag in tags)
            bumped.update(tags, parts)
        self.bumps.clear()
        return bumped


class Company:
    """An organization's tickets as events, and what its searches answer."""

    def __init__(self, consumer: IndexConsumer, queries: Queries, owner: TicketsOwner) -> None:
        self.id = uuid.uuid4()
        self.lives: list[list[TicketEvent]] = []
        self._consumer = consumer
        self._queries = queries
        self._owner = owner

    def create(self, title: str, description: str = "", *, days_ago: float = 0) -> TicketEvent:
        """Numbers count from 1; tickets are seconds apart."""
        event = created(self.id, title=title, description=description)
        number = len(self.lives) + 1
        created_at = event.data.ticket.created_at - dt.timedelta(days=10 + days_ago, seconds=-number)
        ticket = msgspec.structs.replace(event.data.ticket, number=number, created_at=created_at)
        event = msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, ticket=ticket))
        self.lives.append([event])
        return event

    def write(self, chance: random.Random) -> TicketEvent:
        """A creation, another title, description, status or priority, or a comment."""
        if len(self.lives) < 2 or (len(self.lives) < 4 and chance.random() < 0.2):
            return self.create(chance.choice(TEXTS), chance.choice(TEXTS), days_ago=chance.choice([0, 0, 5]))
        life = chance.choice(self.lives)
        match chance.randrange(6):
            case 0 | 1:
                event = changed(life[-1], title=chance.choice(TEXTS))
            case 2:
                event = changed(life[-1], description=chance.choice(TEXTS))
            case 3:
                event = changed(life[-1], status=chance.choice(list(Status)))
            case 4:
                event = changed(life[-1], priority=chance.choice(list(Priority)))
            case _:
                event = commented(life[-1], chance.choice(TEXTS))
        life.append(event)
        return event

    async def index(self, events: Sequence[TicketEvent]) -> None:
        for life in self.lives:
            self._owner.add(life)
        await self._consumer.apply(events)

    async def answer(self, query: str, limit: int = 50) -> tuple[list[Any], set[str]]:
        """What is shown, and every tag that this depends on."""
        found, header = await self._queries.search(self.id, query, limit)
        parts = parts_of_search(self.id, header, [result.ticket.id for result in found.results])
        shown = [msgspec.structs.replace(result, score=0.0) for result in found.results]
        return shown, {*of_search(self.id).tags, *parts}

    async def answers(self) -> Answers:
        return {(query, limit): await self.answer(query, limit) for query in QUERIES for limit in LIMITS}


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def company(documents: Documents, readers: asyncpg.Pool, owner: TicketsOwner, told: Told) -> Company:
    return Company(IndexConsumer(documents, told), Queries(readers), owner)


@pytest.mark.parametrize("seed", range(4))
async def test_an_answer_that_a_write_changes_is_made_old(company: Company, told: Told, seed: int) -> None:
    """Writes come one by one, several at once, a second time, or are missed and fetched with the next."""
    chance = random.Random(seed)
    different = survived = 0
    before = await company.answers()
    for _ in range(60):
        events = [company.write(chance) for _ in range(chance.choice([1, 1, 1, 1, 2, 3]))]
        if chance.random() < 0.1 and events[0].version > 1:
            events = [event for event in events if event.data.ticket.id != events[0].data.ticket.id] or events
        if chance.random() < 0.05:
            events.append(chance.choice(company.lives)[0])
        await company.index(events)
        bumped = told.take()
        after = await company.answers()
        for asked, (shown, depends_on) in before.items():
            if after[asked][0] != shown:
                different += 1
                assert depends_on & bumped, (asked, shown, after[asked][0], events)
            elif not depends_on & bumped:
                survived += 1
        before = after
    assert different > 300
    assert survived > 300


@pytest.mark.parametrize(("before", "after"), [("", "apricot"), ("apricot", ""), ("apricot x", "x apricot")])
async def test_a_word_that_comes_goes_or_moves_is_bumped_and_no_other(
    company: Company, told: Told, before: str, after: str
) -> None:
    first = company.create(f"fig {before}", "plum")
    await company.index([first])
    told.take()
    _shown, apricots = await company.answer("apricot -fig -plum")
    _shown, figs = await company.answer("kiwi OR fig", 1)
    await company.index([changed(first, title=f"fig {after}", description="")])
    bumped = told.take()
    assert apricots & bumped
    words = {tag for tag in figs if ":word:" in tag}
    assert len(words) == 2
    assert not words & bumped


async def test_what_no_word_of_a_search_changes_leaves_it(company: Company, told: Told) -> None:
    shown = company.create("printer on fire")
    hidden = company.create("another printer", days_ago=5)
    await company.index([shown, hidden])
    told.take()
    (result,), depends_on = await company.answer("printer", 1)
    assert result.ticket.id == shown.data.ticket.id
    hidden = commented(hidden, "smoke")
    for event in (hidden, changed(hidden, status=Status.SOLVED), company.create("scanner")):
        await company.index([event])
        assert not depends_on & told.take()
    await company.index([changed(shown, status=Status.SOLVED)])
    assert depends_on & told.take()


async def test_what_leaves_the_newest_lets_in_what_is_older(company: Company, told: Told) -> None:
    old = company.create("apricot apricot apricot apricot", days_ago=5)
    newest = [company.create("apricot") for _ in range(200)]
    await company.index([old, *newest])
    told.take()
    before, depends_on = await company.answer("apricot", 1)
    leaves = next(event for event in newest if event.data.ticket.id != before[0].ticket.id)
    await company.index([changed(leaves, title="fig")])
    after, _ = await company.answer("apricot", 1)
    assert [result.ticket.id for result in after] == [old.data.ticket.id]
    assert before != after
    assert depends_on & told.take()


async def test_a_number_or_a_creation_that_is_another_is_bumped(company: Company, told: Told) -> None:
    """Neither ever is; only who rebuilds an index by hand could see it."""
    first = company.create("apricot")
    await company.index([first])
    searched = {query: (await company.answer(query, 1))[1] for query in ("apricot -x", "7", "1")}
    for tags in searched.values():
        tags.discard(f"found:{first.data.ticket.id}")
    told.take()
    second = changed(first, created_at=first.data.ticket.created_at - LONG_AGO)
    await company.index([second])
    assert searched["apricot -x"] & told.take()
    await company.index([changed(second, number=7)])
    bumped = told.take()
    assert searched["1"] & bumped
    assert searched["7"] & bumped
    assert not searched["apricot -x"] & bumped


@pytest_asyncio.fixture(loop_scope="session")
async def redis(stack: Stack) -> AsyncIterator[Redis]:
    async with Redis.from_url(stack.cache_redis_url) as client:
        yield client


async def test_what_redis_did_not_take_is_made_up_for_when_the_batch_comes_again(
    company: Company, documents: Documents, redis: Redis
) -> None:
    """The index has it all by then, so that nothing changes any more."""
    first = company.create("apricot")
    await company.index([first])
    _shown, depends_on = await company.answer("fig")
    cached = CachedSearch(redis, company.id, depends_on)
    await cached.keep()
    batch = [changed(first, title="fig")]
    async with Redis.from_url(f"redis://{HOST}:{free_ports(1)[0]}") as nobody:
        with pytest.raises(RedisError):
            await IndexConsumer(documents, Tags(nobody)).apply(batch)
    assert (await company.answer("fig"))[0]
    assert await cached.is_valid(), "nobody has told"
    await IndexConsumer(documents, Tags(redis)).apply(batch)
    assert not await cached.is_valid()


async def test_what_another_process_has_stored_meanwhile_is_told_here_too(
    company: Company, documents: Documents, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one may be gone before it could."""
    first = company.create("apricot")
    await company.index([first])
    _shown, depends_on = await company.answer("fig")
    second = changed(first, title="fig")
    third = changed(second, title="kiwi")
    refetch = Documents._refetch

    async def overtaken(self: Documents, gaps: Any) -> Any:
        monkeypatch.setattr(Documents, "_refetch", refetch)
        await documents.apply([second, third], {third.type: lambda comments, _event: comments})
        return await refetch(self, gaps)

    monkeypatch.setattr(Documents, "_refetch", overtaken)
    told.take()
    await company.index([second])
    assert depends_on & told.take()


async def test_what_was_stored_beside_a_document_that_cannot_be_is_told(
    company: Company, documents: Documents, told: Told
) -> None:
    _shown, depends_on = await company.answer("apricot")
    good, bad = company.create("apricot"), company.create("fig")
    ticket = msgspec.structs.replace(bad.data.ticket, number=2**70)
    bad = msgspec.structs.replace(bad, data=msgspec.structs.replace(bad.data, ticket=ticket))
    with pytest.raises(EventsRejected):
        await company.index([good, bad])
    assert not told.take()
    await company.index([good])
    assert depends_on & told.take()


async def test_an_organization_is_told_of_its_own_changes_at_its_highest_position(
    documents: Documents, told: Told
) -> None:
    ours, theirs = uuid.uuid4(), uuid.uuid4()
    first, foreign = created(ours, title="apricot"), created(theirs, title="fig")
    late = msgspec.structs.replace(changed(first, title="kiwi"), position=Position(2, 5))
    await IndexConsumer(documents, told).apply([first, late, foreign])
    bumps = {tags[0]: (tags, set(parts), position) for tags, parts, position in told.bumps}
    assert bumps == {
        search_tag(organization): (
            [search_tag(organization)],
            {*parts_of_search(organization, words_header([word, "#1"], matches_without=False), [event.data.ticket.id])},
            position,
        )
        for organization, word, event, position in [
            (ours, "kiwi", first, Position(2, 5)),
            (theirs, "fig", foreign, foreign.position),
        ]
    }


async def test_parts_that_nobody_has_found_do_not_fill_redis(redis: Redis) -> None:
    organization = uuid.uuid4()
    change = Change(organization, uuid.uuid4(), ["apricot"])
    made_old = indexed(organization, [change], untold=False)
    assert made_old.parts
    await Tags(redis).bump(made_old.tags, Position(1, 1), parts=made_old.parts)
    assert await redis.exists(*map(tag_key, made_old.parts)) == 0
    assert await redis.exists(*map(tag_key, made_old.tags)) == len(made_old.tags)


async def test_many_words_at_once_make_every_search_old(company: Company, told: Told) -> None:
    first = company.create("x")
    await company.index([first])
    told.take()
    _shown, depends_on = await company.answer("apricot")
    many = " ".join(f"word{number}" for number in range(CHANGED_WORDS + 1))
    await company.index([changed(first, description=many)])
    assert told.bumps[0][:2] == ([search_tag(company.id), *searches(company.id)], [])
    assert depends_on & told.take()


async def test_words_are_read_from_every_query(readers: asyncpg.Pool) -> None:
    for words in (["it's"], ["back\\slash", "''", "\\'"], ["a' & 'b"], ["ü\u20ac", "x:*", "<->"], []):
        written = ["'" + word.replace("\\", "\\\\").replace("'", "''") + "'" for word in words]
        for query in (" & ".join(written), " <2> ".join(written), " | !".join(written)):
            assert words_of(await readers.fetchval("SELECT $1::text::tsquery::text", query)) == frozenset(words)

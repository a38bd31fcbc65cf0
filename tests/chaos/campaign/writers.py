"""The load of a campaign: writers that create, change and comment on the same tickets, and never give up.

A creation is repeated with its Idempotency-Key until it is answered, sometimes by two callers at once. An update whose
answer is lost is repeated with its If-Match; a 412 after that leaves open whether it was made.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import random
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
import msgspec

from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Principal, Signer
from tests.chaos.campaign.checker import Creation, Kind, Update, Violation

HOT_TICKETS = 8  # an organization's, which all its writers change
REQUEST_SECONDS = 6.0
COME_AGAIN = frozenset({502, 503, 504})


@dataclasses.dataclass
class Records:
    """What the writers asked for and were told. `events` counts the versions they know to have been made.

    While `ahead` the writers take their time, so that the load lasts as long as the faults.
    """

    creations: list[Creation] = dataclasses.field(default_factory=list)
    updates: list[Update] = dataclasses.field(default_factory=list)
    violations: list[Violation] = dataclasses.field(default_factory=list)
    events: int = 0
    repeats: int = 0
    ahead: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Office:
    """One organization's writers. The tickets that all of them change are created by the first."""

    def __init__(
        self,
        principals: Sequence[Principal],
        urls: Sequence[str],
        signer: Signer,
        records: Records,
        names: Iterator[int],
    ) -> None:
        self._principals = principals
        self._urls = urls
        self._signer = signer
        self._records = records
        self._names = names
        self.hot: list[str] = []

    async def prepare(self, http: aiohttp.ClientSession) -> None:
        writer = Writer(self, self._principals[0], http, random.Random(0))
        for _ in range(HOT_TICKETS):
            await writer.create(callers=1)

    def writer(self, number: int, http: aiohttp.ClientSession, seed: int) -> "Writer":
        return Writer(self, self._principals[number % len(self._principals)], http, random.Random(seed))

    @property
    def records(self) -> Records:
        return self._records

    def name(self, what: str) -> str:
        return f"{what} {next(self._names)}"

    def url(self, chance: random.Random) -> str:
        return chance.choice(self._urls)

    def headers(self, principal: Principal) -> dict[str, str]:
        return {PRINCIPAL_HEADER: self._signer.principal_token(principal, "tickets")}


class Writer:
    """One client, which does one thing after the other."""

    def __init__(
        self, office: Office, principal: Principal, http: aiohttp.ClientSession, chance: random.Random
    ) -> None:
        self._office = office
        self._principal = principal
        self._http = http
        self._chance = chance
        self._seen: dict[str, int] = {}

    async def write(self, stop: asyncio.Event) -> None:
        """Write until told to stop; what was begun then is brought to its end."""
        while not stop.is_set():
            draw = self._chance.random()
            if draw < 0.55:
                await self.update(self._ticket())
            elif draw < 0.75:
                await self.comment(self._ticket())
            elif draw < 0.98:
                await self.create(callers=2 if self._chance.random() < 0.15 else 1)
            else:
                await self.create_many(self._chance.randint(5, 50))
            if self._office.records.ahead:
                await asyncio.sleep(self._chance.uniform(0.1, 0.3))

    def _ticket(self) -> str:
        return self._chance.choice(self._office.hot)

    async def create(self, *, callers: int) -> None:
        title = self._office.name("Created")
        answers = await self._repeat("/api/tickets", {"title": title}, [title], callers=callers)
        ticket = answers[0].json()["id"]
        if len(self._office.hot) < HOT_TICKETS:
            self._office.hot.append(ticket)
        elif self._chance.random() < 0.05:  # hot tickets change, so that there are many of a few dozen versions
            self._office.hot[self._chance.randrange(HOT_TICKETS)] = ticket

    async def create_many(self, count: int) -> None:
        titles = [self._office.name("Imported") for _ in range(count)]
        await self._repeat("/api/tickets/bulk", {"tickets": [{"title": title} for title in titles]}, titles)

    async def comment(self, ticket: str) -> None:
        body = self._office.name("Comment")
        await self._repeat(f"/api/tickets/{ticket}/comments", {"body": body}, [body])

    async def _repeat(self, path: str, body: Any, effects: Sequence[str], *, callers: int = 1) -> list[Answer]:
        """POST until every caller is answered."""
        creation = Creation(str(uuid.UUID(int=self._chance.getrandbits(128))), effects)
        self._office.records.creations.append(creation)

        async def call() -> Answer:
            while True:
                answer = await self._ask("POST", path, body, {"Idempotency-Key": creation.key})
                if answer is not None and answer.status in {200, 201}:
                    creation.answers.append(answer.body)
                    return answer
                if answer is not None and answer.status != 409:  # 409: another request with the key is under way
                    self._unexpected(f"POST {path}", answer)
                await self._before_repeating()

        answers = await asyncio.gather(*(call() for _ in range(callers)))
        self._office.records.events += len(effects)
        return answers

    async def update(self, ticket: str) -> None:
        """Change a ticket, at times at a version seen long ago. A refusal is the end of it."""
        seen = self._seen.get(ticket) if self._chance.random() < 0.3 else None
        version = seen or await self._read(ticket)
        update = Update(ticket, version, self._office.name("Changed"))
        self._office.records.updates.append(update)
        changes: dict[str, str] = {"title": update.title}
        if self._chance.random() < 0.3:
            changes["status"] = self._chance.choice(["open", "pending", "solved"])
        doubtful = False
        while True:
            answer = await self._ask("PATCH", f"/api/tickets/{ticket}", changes, {"If-Match": f'"{version}"'})
            if answer is not None and answer.status == 200:
                update.outcome = "applied"
                told = answer.json()
                if (told["version"], told["title"]) != (version + 1, update.title):
                    self._unexpected(f"PATCH of {version} to {update.title!r}", answer)
                self._seen[ticket] = version + 1
                self._office.records.events += 1
                return
            if answer is not None and answer.status == 412:
                update.outcome = "unknown" if doubtful else "refused"
                self._seen[ticket] = await self._read(ticket)
                return
            if answer is not None:
                self._unexpected("PATCH", answer)
            doubtful = True
            await self._before_repeating()

    async def _read(self, ticket: str) -> int:
        while True:
            answer = await self._ask("GET", f"/api/tickets/{ticket}", None, {})
            if answer is not None and answer.status == 200:
                return int(answer.json()["version"])
            if answer is not None:
                self._unexpected("GET", answer)
            await self._before_repeating()

    async def _ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Answer | None:
        """One request to either service; None when it is not known what became of it."""
        url = self._office.url(self._chance) + path
        content = None if body is None else msgspec.json.encode(body)
        sent = {**self._office.headers(self._principal), **headers, "Content-Type": "application/json"}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._http.request(method, url, data=content, headers=sent) as response:
                answer = Answer(response.status, await response.read())
                return None if answer.status in COME_AGAIN else answer
        return None

    async def _before_repeating(self) -> None:
        self._office.records.repeats += 1
        await asyncio.sleep(self._chance.uniform(0.05, 0.3))

    def _unexpected(self, what: str, answer: Answer) -> None:
        detail = f"{what}: {answer.status} {answer.body[:300].decode(errors='replace')}"
        self._office.records.violations.append(Violation(Kind.ANSWER, detail))


def http_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    )


def names() -> Iterator[int]:
    return itertools.count(1)

"""The reference workload of the cache: who reads what, how often, and from which level it is answered.

Of 100 requests 5 write; of the others 70 % read one ticket, 20 % a list and 10 % search. Tickets are chosen by
Zipf's law (exponent 1.0) among 20,000 of 50 organizations, four users of each (two admins and two agents: there are no
other roles), over four gateway processes. Before it is counted everything has been read once in each role, for a cache
that has run for a while is what is asked for, and the workload itself has run for a while.

What was read anew although the answer was the same is told apart from what had changed: no cache that is never stale
can answer the latter. Nothing here depends on how fast it runs: an entry lives until a write makes it old. The counts
are the gateways' own metrics; the header `Relaydesk-Cache` of every answer must say the same.
"""

import asyncio
import collections
import contextlib
import dataclasses
import random
import re
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from prometheus_client.parser import text_string_to_metric_families

from infra.local.stack import Stack
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Signer
from libs.common.models import Role
from tests.bench.figures import Figure
from tests.chaos.cache_campaign.cast import User, office
from tests.support.clients import Tenant
from tests.support.processes import TestedService, running_service

ORGANIZATIONS = 50
TICKETS = 20_000
GATEWAYS = 4
CLIENTS = 32
WRITES = 0.05
READS = {"ticket": 0.70, "ticket_list": 0.20, "search": 0.10}
ROLES = (Role.ADMIN, Role.ADMIN, Role.AGENT, Role.AGENT)
SETTLING = 0.3  # of the measured time: what runs before it
LISTS: Mapping[str, float] = {
    "": 0.4,
    "?status=open,pending&sort=-updated_at": 0.3,
    "?assigned_to=me&status=open,pending": 0.2,
    "?priority=high,urgent": 0.1,
}
WORDS = """
printer screen password invoice delivery account network keyboard update license mailbox camera battery
phone router backup server browser calendar contract refund shipping order payment login export import
report chart filter label template folder upload download video audio cable adapter charger monitor mouse
scanner projector headset token certificate domain
""".split()  # noqa: SIM905 (a list of 49 lines says no more)
INDEX_SECONDS = 300.0
_PASSING = re.compile(rb'"(took_ms|score)":[0-9.e-]+')  # what differs in two answers that say the same


@dataclasses.dataclass(frozen=True)
class Ticket:
    id: str
    organization: int


@dataclasses.dataclass
class Desk:
    """Everything there is, made once a run of the benchmarks; tickets stand in the order of their popularity."""

    offices: list[list[User]]
    tickets: list[Ticket]
    weights: list[float]
    words: list[float]


@dataclasses.dataclass
class Counts:
    """What clients saw: outcomes by what was read, and why a read was a miss."""

    outcomes: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    reasons: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)


_desks: dict[Path, Desk] = {}


async def measure(stack: Stack, _tenants: Sequence[Tenant], seconds: float) -> list[Figure]:
    """The first call makes the tickets and waits until they are indexed, which takes a minute."""
    desk = _desks.get(stack.root) or await _fill(stack)
    first = stack.root not in _desks
    _desks[stack.root] = desk
    async with _gateways(stack) as gateways, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        workload = Workload(desk, gateways, http)
        if first:
            await workload.read_everything()
        await workload.run(seconds * 6 * SETTLING)
        before = [await _counters(gateway) for gateway in gateways]
        workload.counts = Counts()
        await workload.run(seconds * 6)
        after = [await _counters(gateway) for gateway in gateways]
    counted: collections.Counter[tuple[str, str]] = collections.Counter()
    for old, new in zip(before, after, strict=True):
        counted.update(new - old)
    return _figures(counted, workload.counts)


class Workload:
    """Users of all organizations, each request through any gateway."""

    def __init__(self, desk: Desk, gateways: Sequence[TestedService], http: aiohttp.ClientSession) -> None:
        self._desk = desk
        self._urls = [gateway.url for gateway in gateways]
        self._http = http
        self._chance = random.Random(1)
        self._clock = 0
        self._seen: dict[str, int] = {}  # hash of the last answer
        self._read_at: dict[str, int] = {}
        self._written_at: dict[str, int] = {}
        self.counts = Counts()

    async def run(self, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds

        async def client() -> None:
            while asyncio.get_running_loop().time() < deadline:
                await self._one()

        await _together(client for _ in range(CLIENTS))

    async def read_everything(self) -> None:
        """Every ticket, list and search once in each role."""
        turn = iter([*self._tickets(), *self._lists_and_searches()])

        async def client() -> None:
            for what, path, user, made_old_by in turn:
                await self._read(what, path, user, [made_old_by])

        await _together(client for _ in range(CLIENTS))

    def _tickets(self) -> Iterator[tuple[str, str, User, str]]:
        for ticket in self._desk.tickets:
            for user in self._desk.offices[ticket.organization][:: len(ROLES) // 2]:
                yield "ticket", f"/api/tickets/{ticket.id}", user, ticket.id

    def _lists_and_searches(self) -> Iterator[tuple[str, str, User, str]]:
        for users in self._desk.offices:
            for user in users:
                yield from (("ticket_list", f"/api/tickets{which}", user, user.organization) for which in LISTS)
            for user in users[:: len(ROLES) // 2]:
                yield from (("search", f"/api/search?q={word}", user, user.organization) for word in WORDS)

    async def _one(self) -> None:
        chance = self._chance
        ticket = chance.choices(self._desk.tickets, cum_weights=self._desk.weights)[0]
        user = chance.choice(self._desk.offices[ticket.organization])
        if chance.random() < WRITES:
            await self._write(ticket, user)
            return
        match chance.choices(list(READS), list(READS.values()))[0]:
            case "ticket":
                await self._read("ticket", f"/api/tickets/{ticket.id}", user, [ticket.id])
            case "ticket_list":
                which = chance.choices(list(LISTS), list(LISTS.values()))[0]
                await self._read("ticket_list", f"/api/tickets{which}", user, [user.organization])
            case _:
                word = chance.choices(WORDS, cum_weights=self._desk.words)[0]
                await self._read("search", f"/api/search?q={word}", user, [user.organization])

    async def _read(self, what: str, path: str, user: User, made_old_by: Sequence[str]) -> None:
        url = self._chance.choice(self._urls) + path
        self._clock += 1
        began = self._clock
        async with self._http.get(url, headers={"Authorization": f"Bearer {user.key}"}) as answer:
            body = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"GET {path}: {answer.status} {await answer.text()}")
            outcome = answer.headers["Relaydesk-Cache"]
        self.counts.outcomes[what, outcome] += 1
        me = str(user.principal.user_id) if "=me" in path else ""
        key = f"{user.organization} {user.principal.role} {path} {me}"
        if outcome == "miss":
            last, written = self._read_at.get(key), max(self._written_at.get(name, 0) for name in made_old_by)
            reason = "first time" if last is None else "written since" if written >= last else "other"
            self.counts.reasons[what, reason] += 1
        shown = hash(_PASSING.sub(b"", body))
        if shown != self._seen.get(key, shown):
            self.counts.reasons[what, "changed"] += 1
        self._seen[key] = shown
        self._read_at[key] = began

    async def _write(self, ticket: Ticket, user: User) -> None:
        """Mostly a comment or another priority, sometimes a new title: whatever an agent does all day."""
        base = self._chance.choice(self._urls) + f"/api/tickets/{ticket.id}"
        headers = {"Authorization": f"Bearer {user.key}"}
        if self._chance.random() < 0.5:
            async with self._http.post(
                f"{base}/comments", json={"body": "I am looking into it."}, headers=headers
            ) as a:
                status = a.status
        else:
            async with self._http.get(base, headers=headers) as read:
                headers["If-Match"] = read.headers["ETag"]
            changes = {"priority": self._chance.choice(["low", "normal", "high", "urgent"])}
            async with self._http.patch(base, json=changes, headers=headers) as changed:
                status = changed.status
        if status not in {200, 201, 412}:  # 412: somebody else was faster
            raise RuntimeError(f"a write was answered with {status}")
        self._clock += 1
        self._written_at[ticket.id] = self._written_at[user.organization] = self._clock


def _figures(counted: Mapping[tuple[str, str], int], seen: Counts) -> list[Figure]:
    total = sum(counted.values())
    levels: collections.Counter[str] = collections.Counter()
    for (level, _key_type), count in counted.items():
        levels[level] += count
    by_header: collections.Counter[str] = collections.Counter()
    for (_what, outcome), count in seen.outcomes.items():
        by_header[outcome] += count

    def percent(part: float, whole: float) -> float:
        return 100 * part / whole if whole else 0.0

    name = "cache workload, answered from"
    header_total = by_header.total()
    figures = [
        Figure(f"{name} the cache", percent(levels["l1"] + levels["l2"], total), 85, "promised, up to 95", "%"),
        Figure(f"{name} L1", percent(levels["l1"], total), 40, "promised, up to 60", "%"),
        Figure(f"{name} L2", percent(levels["l2"], total), 30, "promised, up to 40", "%"),
        Figure(f"{name} the database", percent(levels["miss"], total), 15, "promised, at least 5", "%"),
        Figure(
            f"{name} the cache, by Relaydesk-Cache",
            percent(by_header["l1"] + by_header["l2"], header_total),
            percent(levels["l1"] + levels["l2"], total),
            "by the metrics, which count a writer's reads too",
            "%",
        ),
    ]
    changed = sum(count for (_what, reason), count in seen.reasons.items() if reason == "changed")
    figures.append(
        Figure(
            f"{name} the cache, of what had not changed",
            percent(header_total - by_header["miss"], header_total - changed),
            100,
            "what a cache that is never stale could answer",
            "%",
        )
    )
    for what in READS:
        reads = {outcome: seen.outcomes[what, outcome] for outcome in ("l1", "l2", "miss")}
        whole = sum(reads.values())
        figures.append(Figure(f"hits of {what}", percent(reads["l1"] + reads["l2"], whole), 85, "all together", "%"))
        for reason in ("written since", "first time", "other", "changed"):
            missed = seen.reasons[what, reason]
            figures.append(Figure(f"misses of {what}: {reason}", percent(missed, whole), 100, "all reads of it", "%"))
    return figures


async def _counters(gateway: TestedService) -> collections.Counter[tuple[str, str]]:
    """Reads by (level or `miss`, key type), as the gateway's /metrics tell."""
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.url}/metrics") as answer:
        text = await answer.text()
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "cache_hits_total":
                found[sample.labels["level"], sample.labels["key_type"]] += int(sample.value)
            elif sample.name == "cache_misses_total":
                found["miss", sample.labels["key_type"]] += int(sample.value)
    return found


@contextlib.asynccontextmanager
async def _gateways(stack: Stack) -> AsyncIterator[list[TestedService]]:
    async with contextlib.AsyncExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="relaydesk-bench-")))
        settings = {
            "GATEWAY_TICKETS_URL": stack.service_url("tickets"),
            "GATEWAY_SEARCH_URL": stack.service_url("search"),
            "LOG_LEVEL": "warning",
        }
        yield [
            await ends.enter_async_context(
                running_service(stack, "gateway", folder / f"{number}.log", script=(), **settings)
            )
            for number in range(GATEWAYS)
        ]


async def _fill(stack: Stack) -> Desk:
    """Tickets, written as an import would, and the index when it has them all."""
    signer = Signer(stack.credentials.signing_key("gateway"))
    chance = random.Random(1)
    each = TICKETS // ORGANIZATIONS
    words = list(accumulate(1 / rank for rank in range(1, len(WORDS) + 1)))
    tickets: list[Ticket] = []
    async with asyncpg.create_pool(stack.primary.url("tickets", superuser=True), min_size=0, max_size=4) as pool:
        offices = [await office(pool, ROLES) for _ in range(ORGANIZATIONS)]
    async with aiohttp.ClientSession(stack.service_url("tickets")) as http:
        for number, users in enumerate(offices):
            rows = [
                {"title": " ".join(chance.choices(WORDS, cum_weights=words, k=4)), "description": "word " * 60}
                for _ in range(each)
            ]
            headers = {PRINCIPAL_HEADER: signer.principal_token(users[0].principal, "tickets")}
            async with http.post("/api/tickets/bulk", json={"tickets": rows}, headers=headers) as answer:
                created = (await answer.json())["results"]
            tickets += [Ticket(row["id"], number) for row in created]
    await _indexed(stack, [user.principal.organization_id for users in offices for user in users[:1]], each)
    chance.shuffle(tickets)
    weights = list(accumulate(1 / rank for rank in range(1, len(tickets) + 1)))
    return Desk(offices, tickets, weights, words)


async def _indexed(stack: Stack, organizations: Sequence[uuid.UUID], each: int) -> None:
    count = "SELECT count(*) FROM documents WHERE organization_id = ANY($1)"
    connection = await stack.primary.connect("search")
    try:
        async with asyncio.timeout(INDEX_SECONDS):
            while await connection.fetchval(count, organizations) < each * len(organizations):
                await asyncio.sleep(0.5)
    finally:
        await connection.close()


async def _together(clients: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client())

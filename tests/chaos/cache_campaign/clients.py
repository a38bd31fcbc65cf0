"""The load: clients that write, and read what was just written, through any gateway and in any way."""

import asyncio
import dataclasses
import datetime as dt
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from libs.common.consistency import HEADER, PRIMARY_HEADER
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from tests.chaos.cache_campaign.cast import Cast, Gateway, User, now
from tests.chaos.cache_campaign.checker import title_of
from tests.chaos.cache_campaign.records import History, Read, Seen, Through, What, Write

TICKETS = 12  # an organization's, at the beginning
COMMENTS = 40  # a ticket's at most: its list must fit on one page
PAGE = 20
REQUEST_SECONDS = 20.0
PATIENCE_SECONDS = 0.3
WAITING = 60  # reads of a patrol that are under way at most
_WHAT = {What.TICKET: 10, What.COMMENTS: 3, What.NEWEST: 8, What.UPDATED: 2, What.SEARCH: 2}


@dataclasses.dataclass
class Ticket:
    """A ticket as its writers know it; the lock lets one of them write at a time, so that they know its version."""

    id: str
    number: int
    name: str
    version: int
    comments: int = 0
    doubtful: bool = False
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)


class Office:
    """One organization: its tickets, and those that were written last, which are read most."""

    def __init__(self, users: list[User]) -> None:
        self.users = users
        self.tickets: list[Ticket] = []
        self.written: deque[Ticket] = deque(maxlen=16)

    def ticket(self, chance: random.Random) -> Ticket:
        return chance.choice(self.written if self.written and chance.random() < 0.5 else self.tickets)


class Client:
    """One client, which does one thing after the other and remembers the tokens and answers that it got."""

    def __init__(
        self, number: int, company: Cast, office: Office, history: History, http: aiohttp.ClientSession, *, seed: int
    ) -> None:
        self._number = number
        self._company = company
        self._office = office
        self._history = history
        self._http = http
        self._chance = random.Random(seed)
        self._user = office.users[number % len(office.users)]
        self._home = company.gateways[number % len(company.gateways)]
        self.only_reads = False
        self._token = ""
        self._names = 0
        self._known: dict[tuple[What, str], tuple[str, Seen]] = {}

    async def work(self, stop: asyncio.Event, *, writes: float, pause: float) -> None:
        """Write and read until told to stop, with pauses of `pause` seconds on average.

        What is not answered soon is left to itself meanwhile, so that somebody asks also while a gateway is frozen.
        """
        waiting: set[asyncio.Task[None]] = set()
        while not stop.is_set():
            if not self.only_reads and self._chance.random() < writes:
                task = asyncio.create_task(self.write())
            else:
                task = asyncio.create_task(self.read(self._what(), self._office.ticket(self._chance)))
            await asyncio.wait({task}, timeout=PATIENCE_SECONDS)  # then something else, while it is waited for
            waiting.add(task)
            for ended in [task for task in waiting if task.done()]:
                ended.result()
                waiting.discard(ended)
            await asyncio.sleep(self._chance.random() * 2 * pause)
        await asyncio.gather(*waiting)

    async def patrol(self, stop: asyncio.Event, *, pause: float) -> None:
        """Read what was written last, again and again, through one gateway after the other."""
        waiting: set[asyncio.Task[None]] = set()
        turn = self._number
        while not stop.is_set():
            turn += 1
            gateway = self._company.gateways[turn % len(self._company.gateways)]
            ticket = self._chance.choice(self._office.written or self._office.tickets)
            waiting.add(asyncio.create_task(self.read(What.TICKET, ticket, gateway=gateway, with_token=False)))
            for ended in [task for task in waiting if task.done()]:
                ended.result()
                waiting.discard(ended)
            await asyncio.sleep(pause if len(waiting) < WAITING else PATIENCE_SECONDS)
        await asyncio.gather(*waiting)

    async def write(self) -> None:
        """Write something somewhere, then read it: here without a token, elsewhere with it."""
        draw = self._chance.random()
        ticket: Ticket | None = self._office.ticket(self._chance)
        assert ticket is not None
        if draw < 0.1 or ticket.lock.locked():
            ticket = await self.create()
        else:
            async with ticket.lock:
                if ticket.doubtful:
                    await self._look_up(ticket)
                if draw < 0.4 and ticket.comments < COMMENTS:
                    await self._comment(ticket)
                else:
                    await self._rename(ticket)
        if ticket is None:
            return
        self._office.written.append(ticket)
        for _ in range(self._chance.randint(1, 3)):
            what = self._what()
            if self._chance.random() < 0.5:
                await self.read(what, ticket, gateway=self._home, with_token=False)
            else:
                await self.read(what, ticket, with_token=True)

    async def create(self) -> Ticket | None:
        self._names += 1
        name = f"zz{self._number}q{self._names}"
        answer = await self._write("POST", "/api/tickets", {"title": title_of(name, 1)}, {})
        if answer is None:
            return None
        told, write = answer
        ticket = Ticket(told["id"], told["number"], name, 1)
        self._wrote(ticket, write, title=told["title"], updated_at=told["updated_at"])
        self._office.tickets.append(ticket)
        return ticket

    async def read(
        self, what: What, ticket: Ticket, *, gateway: Gateway | None = None, with_token: bool | None = None
    ) -> None:
        """Read in one of the ways there are, and write down what was seen."""
        chance = self._chance
        if gateway is None:
            gateway = self._home if chance.random() < 0.5 else chance.choice(self._company.gateways)
        if with_token is None:
            with_token = chance.random() < 0.4
        path, query = self._target(what, ticket)
        headers = {"Authorization": f"Bearer {self._user.key}"}
        if with_token and self._token:
            headers[HEADER] = self._token
        known = self._known.get((what, path + str(query)))
        if known is not None and chance.random() < 0.4:
            headers["If-None-Match"] = known[0]
        through = gateway.through
        started = now()
        status, body, failure = 0, b"", None
        told: Mapping[str, str] = {}
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                async with self._http.get(gateway.process.url + path, params=query, headers=headers) as answer:
                    body = await answer.read()
                    status, told = answer.status, answer.headers
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            failure = repr(error)
        ended = now()
        seen = None
        if status == 200:
            seen = self._keep(what, path + str(query), told["ETag"], body, known)
        elif status == 304 and known is not None and told.get("ETag") == headers.get("If-None-Match"):
            seen = known[1]
        elif failure is None:
            failure = f"{status} {body[:300].decode(errors='replace')} {told.get('ETag')}"
        token = told.get(HEADER)
        self._history.reads.append(
            Read(
                client=self._number,
                through=through,
                what=what,
                organization=self._user.organization,
                ticket=ticket.id if what in {What.TICKET, What.COMMENTS, What.SEARCH} else "",
                need=headers.get(HEADER) if what is not What.SEARCH else None,
                started=started,
                ended=ended,
                outcome=told.get("Relaydesk-Cache", "none") if seen is not None else "failed",
                token=token,
                seen=seen,
                failure=failure,
                revalidated=status == 304,
            )
        )
        if token is not None and seen is not None:
            self._token = max(self._token, token)  # tokens order as positions

    def _what(self) -> What:
        return self._chance.choices(list(_WHAT), list(_WHAT.values()))[0]

    def _target(self, what: What, ticket: Ticket) -> tuple[str, dict[str, str]]:
        match what:
            case What.TICKET:
                return f"/api/tickets/{ticket.id}", {}
            case What.COMMENTS:
                return f"/api/tickets/{ticket.id}/comments", {"limit": "100"}
            case What.NEWEST:
                return "/api/tickets", {"limit": str(PAGE)}
            case What.UPDATED:
                return "/api/tickets", {"limit": str(PAGE), "sort": "-updated_at"}
            case What.SEARCH:
                return "/api/search", {"q": ticket.name}

    def _keep(self, what: What, target: str, etag: str, body: bytes, known: tuple[str, Seen] | None) -> Seen:
        """What an answer shows; two answers under one ETag must show the same."""
        told = msgspec.json.decode(body)
        seen = _seen(what, told)
        if known is not None and known[0] == etag and known[1] != seen:
            self._history.conflicts.append(f"{target} has two contents under the ETag {etag}: {known[1]} and {seen}")
        if what is What.TICKET and etag != f'"{told["version"]}"':
            self._history.conflicts.append(f"{target} has version {told['version']} and the ETag {etag}")
        self._known[what, target] = (etag, seen)
        return seen

    async def _rename(self, ticket: Ticket) -> None:
        title = title_of(ticket.name, ticket.version + 1)
        headers = {"If-Match": f'"{ticket.version}"'}
        answer = await self._write("PATCH", f"/api/tickets/{ticket.id}", {"title": title}, headers)
        if answer is None:
            ticket.doubtful = True
            return
        told, write = answer
        ticket.version = told["version"]
        self._wrote(ticket, write, title=title, updated_at=told["updated_at"])

    async def _comment(self, ticket: Ticket) -> None:
        ticket.comments += 1
        body = f"Comment {ticket.comments} on {ticket.name} by {self._number}"
        answer = await self._write("POST", f"/api/tickets/{ticket.id}/comments", {"body": body}, {})
        if answer is None:
            ticket.doubtful = True
            return
        told, write = answer
        ticket.version += 1
        self._wrote(ticket, write, comment=body, updated_at=told["created_at"])

    async def _look_up(self, ticket: Ticket) -> None:
        """A write was not answered: see what has come of it."""
        headers = self._signed() | {PRIMARY_HEADER: "1"}
        url = f"{self._company.tickets.url}/api/tickets/{ticket.id}"
        async with self._http.get(url, headers=headers) as answer:
            ticket.version = (await answer.json())["version"]
        ticket.doubtful = False

    async def _write(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> tuple[Any, dict[str, Any]] | None:
        """Most through the home gateway, some through another, some straight to the tickets service."""
        draw = self._chance.random()
        through: Through | None = None
        if draw < 0.75:
            gateway = self._home if draw < 0.6 else self._chance.choice(self._company.gateways)
            through, base = gateway.through, gateway.process.url
            sent = {"Authorization": f"Bearer {self._user.key}", **headers}
        else:
            base = self._company.tickets.url
            sent = {**self._signed(), **headers}
        started = now()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                async with self._http.request(method, base + path, json=body, headers=sent) as answer:
                    told = await answer.json()
                    answered = now()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            self._history.unanswered_writes += 1
            return None
        if answer.status not in {200, 201}:
            self._history.conflicts.append(f"{method} {path}: {answer.status} {told}")
            return None
        token = answer.headers[HEADER]
        self._token = max(self._token, token)
        return told, {"through": through, "token": token, "started": started, "answered": answered}

    def _signed(self) -> dict[str, str]:
        return {PRINCIPAL_HEADER: self._company.signer.principal_token(self._user.principal, "tickets")}

    def _wrote(
        self,
        ticket: Ticket,
        write: dict[str, Any],
        *,
        updated_at: str,
        title: str | None = None,
        comment: str | None = None,
    ) -> None:
        self._history.writes.append(
            Write(
                client=self._number,
                organization=self._user.organization,
                ticket=ticket.id,
                number=ticket.number,
                version=ticket.version,
                title=title,
                comment=comment,
                updated_at=_seconds(updated_at),
                **write,
            )
        )


def _seen(what: What, told: Any) -> Seen:
    match what:
        case What.TICKET:
            return Seen({told["id"]: told["version"]}, {told["id"]: told["title"]})
        case What.COMMENTS:
            return Seen(comments=frozenset(comment["body"] for comment in told["comments"]))
        case What.SEARCH:
            found = [result["ticket"] for result in told["results"]]
            return Seen(titles={ticket["id"]: ticket["title"] for ticket in found})
    rows = told["tickets"]
    last = None
    if len(rows) == PAGE:
        last = float(rows[-1]["number"]) if what is What.NEWEST else _seconds(rows[-1]["updated_at"])
    return Seen({row["id"]: row["version"] for row in rows}, {row["id"]: row["title"] for row in rows}, last=last)


def _seconds(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()

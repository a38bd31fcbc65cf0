"""`/api/tickets` and `/api/search`: reads through the cache, writes handed on."""

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec
from aiohttp import web

from libs.common import background
from libs.common.cache.search_tags import WORDS_HEADER, of_search, parts_of_search
from libs.common.cache.ticket_tags import CREATED, FACETS, of_list, ticket_tag, written
from libs.common.identity import Principal
from libs.common.models import BulkUpdateReport
from libs.common.service import read_body
from services.gateway.answers.reads import CachedReads
from services.gateway.callers.authentication import Authenticator
from services.gateway.upstreams.forwarding import forward, path_id, relayed
from services.gateway.upstreams.upstream import Answer, Upstream

_USERS = ("assigned_to", "user_id")
_NAMES = ("status", "priority")  # each one name or several with commas between
_report = msgspec.json.Decoder(BulkUpdateReport)


_named = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Written(NamedTuple):
    """What a write has changed: tickets that were there before, and facets of `libs.common.cache.ticket_tags`."""

    ticket_ids: Iterable[object] = ()
    facets: Iterable[str] = ()


class _Listed(msgspec.Struct, frozen=True):
    id: uuid.UUID


class _Page(msgspec.Struct, frozen=True):
    """Of a page, only which tickets stand on it matters here."""

    tickets: list[_Listed]


class _Result(msgspec.Struct, frozen=True):
    ticket: _Listed


class _Results(msgspec.Struct, frozen=True):
    """Of search results likewise."""

    results: list[_Result]


_page = msgspec.json.Decoder(_Page)
_results = msgspec.json.Decoder(_Results)


class TicketRoutes:
    def __init__(self, authenticator: Authenticator, reads: CachedReads, tickets: Upstream, search: Upstream) -> None:
        self._authenticator = authenticator
        self._reads = reads
        self._tickets = tickets
        self._search = search

    async def list(self, request: web.Request) -> web.Response:
        caller = await self._authenticator.authenticate(request)
        query = list_query(request.query, caller.principal)
        depends_on = of_list(caller.principal.organization_id, query)
        return await self._reads.answer(
            request,
            caller,
            self._tickets,
            key_type="ticket_list",
            tags=depends_on.tags,
            watched=depends_on.watched,
            parts_of=_tickets_of if depends_on.watched else None,
            query=query,
        )

    async def get(self, request: web.Request) -> web.Response:
        return await self._read_of_ticket(request, "ticket")

    async def list_comments(self, request: web.Request) -> web.Response:
        return await self._read_of_ticket(request, "comments")

    async def list_history(self, request: web.Request) -> web.Response:
        return await self._read_of_ticket(request, "history")

    async def search(self, request: web.Request) -> web.Response:
        caller = await self._authenticator.authenticate(request)
        organization_id = caller.principal.organization_id
        depends_on = of_search(organization_id)

        def parts_of(answer: Answer) -> tuple[str, ...]:
            shown = (result.ticket.id for result in _results.decode(answer.body).results)
            return parts_of_search(organization_id, answer.headers.get(WORDS_HEADER), shown)

        return await self._reads.answer(
            request,
            caller,
            self._search,
            key_type="search",
            tags=depends_on.tags,
            watched=depends_on.watched,
            parts_of=parts_of,
            consistent=False,
        )

    async def create(self, request: web.Request) -> web.Response:
        """One ticket or many."""
        return await self._write(request, lambda _sent, _answer: Written(facets=[CREATED]))

    async def update(self, request: web.Request) -> web.Response:
        ticket_id = path_id(request, "ticket_id")
        return await self._write(request, lambda sent, _answer: Written([ticket_id], _named.decode(sent)))

    async def comment(self, request: web.Request) -> web.Response:
        ticket_id = path_id(request, "ticket_id")
        return await self._write(request, lambda _sent, _answer: Written([ticket_id]))

    async def update_many(self, request: web.Request) -> web.Response:
        """A bulk update: only its answer tells which tickets have changed."""

        def updated(_sent: bytes, answer: Answer) -> Written:
            results = _report.decode(answer.body).results
            return Written([result.id for result in results if result.status == "updated"], FACETS)

        return await self._write(request, updated)

    async def _write(self, request: web.Request, written_by: Callable[[bytes, Answer], Written]) -> web.Response:
        """Hand a write on; its body and answer say what it has written. What that made old is not given any more."""
        principal = (await self._authenticator.authenticate(request)).principal
        answer = await forward(request, principal, self._tickets)
        if answer.status < 300:
            tags = written(principal.organization_id, *written_by(await read_body(request), answer))
            await background.finish(self._reads.wrote(tags, answer))
        return relayed(answer)

    async def _read_of_ticket(self, request: web.Request, key_type: str) -> web.Response:
        caller = await self._authenticator.authenticate(request)
        tags = [ticket_tag(path_id(request, "ticket_id"))]
        return await self._reads.answer(request, caller, self._tickets, key_type=key_type, tags=tags)


def _tickets_of(page: Answer) -> tuple[str, ...]:
    """The tags of the tickets on a page."""
    return tuple(ticket_tag(ticket.id) for ticket in _page.decode(page.body).tickets)


def list_query(query: Mapping[str, str], principal: Principal) -> dict[str, str]:
    """A list's query as everybody means it: `me` becomes the user's id, names stand in one order."""
    meant = dict(query)
    for name in _USERS:
        if meant.get(name) == "me":
            meant[name] = str(principal.user_id)
    for name in _NAMES:
        if name in meant:
            meant[name] = ",".join(sorted(set(meant[name].split(","))))
    return meant

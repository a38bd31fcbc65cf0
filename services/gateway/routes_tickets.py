"""`/api/tickets` and `/api/search`: reads through the cache, writes handed on."""

from collections.abc import Mapping

import msgspec
from aiohttp import web

from libs.common import background
from libs.common.cache.tags import search_tag, ticket_tag, tickets_tag
from libs.common.identity import Principal
from libs.common.models import BulkUpdateReport
from services.gateway.authentication import Authenticator
from services.gateway.forwarding import forward, path_id, relayed
from services.gateway.reads import CachedReads
from services.gateway.upstream import Upstream

_USERS = ("assigned_to", "user_id")
_NAMES = ("status", "priority")  # each one name or several with commas between
_report = msgspec.json.Decoder(BulkUpdateReport)


class TicketRoutes:
    def __init__(self, authenticator: Authenticator, reads: CachedReads, tickets: Upstream, search: Upstream) -> None:
        self._authenticator = authenticator
        self._reads = reads
        self._tickets = tickets
        self._search = search

    async def list(self, request: web.Request) -> web.Response:
        caller = await self._authenticator.authenticate(request)
        tags = [tickets_tag(caller.principal.organization_id)]
        query = list_query(request.query, caller.principal)
        return await self._reads.answer(request, caller, self._tickets, key_type="ticket_list", tags=tags, query=query)

    async def get(self, request: web.Request) -> web.Response:
        return await self._read_of_ticket(request, "ticket")

    async def list_comments(self, request: web.Request) -> web.Response:
        return await self._read_of_ticket(request, "comments")

    async def list_history(self, request: web.Request) -> web.Response:
        return await self._read_of_ticket(request, "history")

    async def search(self, request: web.Request) -> web.Response:
        caller = await self._authenticator.authenticate(request)
        tags = [search_tag(caller.principal.organization_id)]
        return await self._reads.answer(request, caller, self._search, key_type="search", tags=tags, consistent=False)

    async def write(self, request: web.Request) -> web.Response:
        """Create, update, comment: whatever changes tickets."""
        principal = (await self._authenticator.authenticate(request)).principal
        answer = await forward(request, principal, self._tickets)
        if answer.status < 300:
            tags = [tickets_tag(principal.organization_id)]
            if "ticket_id" in request.match_info:
                tags.append(ticket_tag(path_id(request, "ticket_id")))
            await background.finish(self._reads.wrote(tags, answer))
        return relayed(answer)

    async def update_many(self, request: web.Request) -> web.Response:
        """A bulk update: only its answer tells which tickets have changed."""
        principal = (await self._authenticator.authenticate(request)).principal
        answer = await forward(request, principal, self._tickets)
        if answer.status < 300:
            updated = [result.id for result in _report.decode(answer.body).results if result.status == "updated"]
            tags = [tickets_tag(principal.organization_id), *map(ticket_tag, updated)]
            await background.finish(self._reads.wrote(tags, answer))
        return relayed(answer)

    async def _read_of_ticket(self, request: web.Request, key_type: str) -> web.Response:
        caller = await self._authenticator.authenticate(request)
        tags = [ticket_tag(path_id(request, "ticket_id"))]
        return await self._reads.answer(request, caller, self._tickets, key_type=key_type, tags=tags)


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

"""HTTP of tickets' histories and the audit log: parse, call, render."""

from collections.abc import Callable

import msgspec
from aiohttp import web

from libs.common.consistency import HEADER
from libs.common.history import Action, CacheClear, HistorySort
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Verifier
from libs.common.problems import decode_body
from libs.common.service import json_response, read_json_body
from services.tickets import audit, history
from services.tickets.database import Database
from services.tickets.parameters import (
    limit_of,
    name_of,
    optional_name_of,
    page_headers,
    principal_of,
    requirement_of,
    ticket_id_of,
)

_cache_clear = msgspec.json.Decoder(CacheClear)


class HistoryRoutes:
    def __init__(self, database: Callable[[], Database], verifier: Verifier) -> None:
        self._database = database
        self._verifier = verifier

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/api/tickets/{ticket_id}/history", self.list_history, allow_head=False)
        router.add_get("/api/audit", self.list_audit, allow_head=False)
        router.add_post("/internal/audit/cache-clear", self.record_cache_clear)

    async def list_history(self, request: web.Request) -> web.Response:
        principal = principal_of(request, self._verifier)
        found = await history.list_history(
            self._database(),
            principal.organization_id,
            ticket_id_of(request),
            requirement_of(request),
            sort=name_of(request, "sort", HistorySort, HistorySort.NEWEST),
            cursor=request.query.get("cursor"),
            limit=limit_of(request),
        )
        return json_response(found.value, headers=page_headers(request, found, found.value.next_cursor))

    async def list_audit(self, request: web.Request) -> web.Response:
        principal = principal_of(request, self._verifier)
        found = await audit.list_audit(
            self._database(),
            principal,
            requirement_of(request),
            action=optional_name_of(request, "action", Action),
            cursor=request.query.get("cursor"),
            limit=limit_of(request),
        )
        return json_response(found.value, headers=page_headers(request, found, found.value.next_cursor))

    async def record_cache_clear(self, request: web.Request) -> web.Response:
        self._verifier.service(request.headers.get(PRINCIPAL_HEADER))
        clear = decode_body(_cache_clear, await read_json_body(request))
        position = await audit.record_cache_clear(self._database(), clear)
        return web.Response(status=204, headers={HEADER: position.token()})

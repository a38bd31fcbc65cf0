"""HTTP of tickets' histories and the audit log: parse, call, render."""

from collections.abc import Callable

from aiohttp import web

from libs.common.history import Action, HistorySort
from libs.common.identity import Verifier
from libs.common.service import json_response
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


class HistoryRoutes:
    def __init__(self, database: Callable[[], Database], verifier: Verifier) -> None:
        self._database = database
        self._verifier = verifier

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/api/tickets/{ticket_id}/history", self.list_history, allow_head=False)
        router.add_get("/api/audit", self.list_audit, allow_head=False)

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

"""HTTP of lists: tickets, and the comments of one; parse, call, render."""

from collections.abc import Callable

from aiohttp import web

from libs.common.identity import Verifier
from libs.common.models import Priority, Status
from libs.common.service import json_response
from services.tickets import comments, lists
from services.tickets.database import Database
from services.tickets.lists import Sort, Wanted
from services.tickets.parameters import (
    limit_of,
    name_of,
    names_of,
    page_headers,
    principal_of,
    requirement_of,
    ticket_id_of,
    user_of,
)

ME = "me"  # the gateway puts the user's id in its place
UNASSIGNED = "none"


class ListRoutes:
    def __init__(self, database: Callable[[], Database], verifier: Verifier) -> None:
        self._database = database
        self._verifier = verifier

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/api/tickets", self.list, allow_head=False)
        router.add_get("/api/tickets/{ticket_id}/comments", self.list_comments, allow_head=False)

    async def list(self, request: web.Request) -> web.Response:
        principal = principal_of(request, self._verifier)
        found = await lists.list_tickets(
            self._database(),
            principal.organization_id,
            requirement_of(request),
            wanted_of(request),
            cursor=request.query.get("cursor"),
            limit=limit_of(request),
        )
        return json_response(found.value, headers=page_headers(request, found, found.value.next_cursor))

    async def list_comments(self, request: web.Request) -> web.Response:
        principal = principal_of(request, self._verifier)
        found = await comments.list_comments(
            self._database(),
            principal.organization_id,
            ticket_id_of(request),
            requirement_of(request),
            sort=name_of(request, "sort", comments.Sort, comments.Sort.OLDEST),
            cursor=request.query.get("cursor"),
            limit=limit_of(request),
        )
        return json_response(found.value, headers=page_headers(request, found, found.value.next_cursor))


def wanted_of(request: web.Request) -> Wanted:
    """The filters and the order that a query names."""
    unassigned = request.query.get("assigned_to") == UNASSIGNED
    return Wanted(
        statuses=names_of(request, "status", Status),
        priorities=names_of(request, "priority", Priority),
        assigned_to=None if unassigned else user_of(request, "assigned_to", ME, UNASSIGNED),
        unassigned=unassigned,
        user_id=user_of(request, "user_id", ME),
        sort=name_of(request, "sort", Sort, Sort.NEWEST),
    )

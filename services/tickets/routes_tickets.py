"""HTTP of tickets and comments: parse, call, render."""

import re
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from libs.common.consistency import AS_OF_HEADER, HEADER, PRIMARY_HEADER, Position, Requirement
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Principal, Verifier
from libs.common.models import BulkCreate, NewComment, NewTicket, Status, TicketChanges
from libs.common.problems import Problem, decode_body
from libs.common.service import json_response, read_json_body
from services.tickets import bulk, comments, tickets
from services.tickets.database import Database, Found

_new_ticket = msgspec.json.Decoder(NewTicket)
_changes = msgspec.json.Decoder(TicketChanges)
_new_comment = msgspec.json.Decoder(NewComment)
_bulk = msgspec.json.Decoder(BulkCreate)
_VERSION = re.compile(r'"([0-9]{1,18})"')  # a strong entity tag (RFC 9110, section 8.8.3) with one of our versions


class TicketRoutes:
    """The routes; `wrote` is called after every COMMIT."""

    def __init__(self, database: Callable[[], Database], verifier: Verifier, wrote: Callable[[], None]) -> None:
        self._database = database
        self._verifier = verifier
        self._wrote = wrote

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_post("/api/tickets", self.create)
        router.add_get("/api/tickets", self.list, allow_head=False)
        router.add_post("/api/tickets/bulk", self.create_many)
        router.add_get("/api/tickets/{ticket_id}", self.get, allow_head=False)
        router.add_patch("/api/tickets/{ticket_id}", self.update)
        router.add_post("/api/tickets/{ticket_id}/comments", self.add_comment)
        router.add_get("/api/tickets/{ticket_id}/comments", self.list_comments, allow_head=False)
        router.add_get("/internal/tickets/{ticket_id}", self.document, allow_head=False)

    async def create(self, request: web.Request) -> web.Response:
        principal = self._principal(request)
        new = decode_body(_new_ticket, await read_json_body(request))
        ticket, position = await tickets.create_ticket(self._database(), principal, new)
        self._wrote()
        headers = _written(position)
        headers |= {"Location": f"/api/tickets/{ticket.id}", "ETag": _etag(ticket.version)}
        return json_response(ticket, status=201, headers=headers)

    async def create_many(self, request: web.Request) -> web.Response:
        principal = self._principal(request)
        batch = decode_body(_bulk, await read_json_body(request))
        report, position = await bulk.create_tickets(self._database(), principal, batch)
        self._wrote()
        return json_response(report, headers=_written(position))

    async def update(self, request: web.Request) -> web.Response:
        principal = self._principal(request)
        ticket_id = ticket_id_of(request)
        changes = decode_body(_changes, await read_json_body(request))
        ticket, position = await tickets.update_ticket(
            self._database(), principal, ticket_id, changes, expected_version=_expected_version(request)
        )
        self._wrote()
        return json_response(ticket, headers=_written(position) | {"ETag": _etag(ticket.version)})

    async def get(self, request: web.Request) -> web.Response:
        principal = self._principal(request)
        found = await tickets.get_ticket(
            self._database(), principal.organization_id, ticket_id_of(request), _requirement(request)
        )
        return json_response(found.value, headers=_read(found) | {"ETag": _etag(found.value.version)})

    async def list(self, request: web.Request) -> web.Response:
        principal = self._principal(request)
        query = request.query
        found = await tickets.list_tickets(
            self._database(),
            principal.organization_id,
            _requirement(request),
            status=_status(query.get("status")),
            cursor=query.get("cursor"),
            limit=_limit(query.get("limit")),
        )
        headers = _read(found)
        page = found.value
        if page.next_cursor:
            following = request.rel_url.update_query(cursor=page.next_cursor)
            headers["Link"] = f'<{following}>; rel="next"'
        return json_response(page, headers=headers)

    async def add_comment(self, request: web.Request) -> web.Response:
        principal = self._principal(request)
        ticket_id = ticket_id_of(request)
        new = decode_body(_new_comment, await read_json_body(request))
        comment, position = await comments.add_comment(self._database(), principal, ticket_id, new)
        self._wrote()
        return json_response(comment, status=201, headers=_written(position))

    async def list_comments(self, request: web.Request) -> web.Response:
        principal = self._principal(request)
        found = await comments.list_comments(
            self._database(), principal.organization_id, ticket_id_of(request), _requirement(request)
        )
        return json_response(found.value, headers=_read(found))

    async def document(self, request: web.Request) -> web.Response:
        """Refetch one, for the other services: the newest state, so from the primary."""
        self._verifier.service(request.headers.get(PRINCIPAL_HEADER))
        try:
            organization_id = uuid.UUID(request.query.get("organization_id", ""))
        except ValueError as error:
            raise Problem("invalid_parameter", "organization_id must be a UUID.") from error
        found = await comments.get_document(
            self._database(), organization_id, ticket_id_of(request), Requirement(primary=True)
        )
        return json_response(found.value, headers=_read(found))

    def _principal(self, request: web.Request) -> Principal:
        return self._verifier.principal(request.headers.get(PRINCIPAL_HEADER))


def ticket_id_of(request: web.Request) -> uuid.UUID:
    """The ticket a path names; what is no UUID names none."""
    text = request.match_info["ticket_id"]
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise Problem("ticket_not_found", f"There is no ticket {text[:64]!r}.") from error


def _etag(version: int) -> str:
    return f'"{version}"'


def _expected_version(request: web.Request) -> int:
    text = request.headers.get("If-Match")
    if text is None:
        raise Problem("precondition_required")
    match = _VERSION.fullmatch(text.strip())
    if match is None:
        raise Problem("invalid_parameter", 'If-Match must hold one version in quotes, such as "3".')
    return int(match[1])


def _requirement(request: web.Request) -> Requirement:
    token = request.headers.get(HEADER)
    position = Position.from_token(token) if token else None
    return Requirement(position, primary=PRIMARY_HEADER in request.headers)


def _status(text: str | None) -> Status | None:
    if text is None:
        return None
    try:
        return Status(text)
    except ValueError as error:
        raise Problem("invalid_parameter", f"status must be one of {', '.join(Status)}.") from error


def _limit(text: str | None) -> int:
    if text is None:
        return 25
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= tickets.PAGE_LIMIT):
        raise Problem("invalid_parameter", f"limit must be a whole number from 1 to {tickets.PAGE_LIMIT}.")
    return int(text)


def _written(position: Position) -> dict[str, str]:
    return {HEADER: position.token()}


def _read(found: Found[Any]) -> dict[str, str]:
    return {HEADER: found.consistency.token(), AS_OF_HEADER: found.as_of.token()}

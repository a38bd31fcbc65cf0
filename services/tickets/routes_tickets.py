"""HTTP of tickets and comments: parse, call, render."""

import re
import uuid
from collections.abc import Callable

import msgspec
from aiohttp import web

from libs.common.consistency import HEADER, Position, Requirement
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Verifier
from libs.common.models import BulkCreate, BulkUpdate, NewComment, NewTicket, TicketChanges
from libs.common.problems import Problem, decode_body
from libs.common.service import json_response, read_json_body
from services.tickets import bulk, comments, tickets
from services.tickets.database import Database
from services.tickets.parameters import principal_of, read_headers, requirement_of, ticket_id_of
from services.tickets.replies import attempt_of, reply_response
from services.tickets.tickets import etag

_new_ticket = msgspec.json.Decoder(NewTicket)
_changes = msgspec.json.Decoder(TicketChanges)
_new_comment = msgspec.json.Decoder(NewComment)
_bulk = msgspec.json.Decoder(BulkCreate)
_bulk_update = msgspec.json.Decoder(BulkUpdate)
# A strong entity tag (RFC 9110, section 8.8.3) with one of our versions; the gateway names the content coding in it.
_VERSION = re.compile(r'"([0-9]{1,18})(?:-(?:br|gzip))?"')


class TicketRoutes:
    """The routes; `wrote` is called after every COMMIT."""

    def __init__(self, database: Callable[[], Database], verifier: Verifier, wrote: Callable[[], None]) -> None:
        self._database = database
        self._verifier = verifier
        self._wrote = wrote

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_post("/api/tickets", self.create)
        router.add_post("/api/tickets/bulk", self.create_many)
        router.add_patch("/api/tickets/bulk", self.update_many)
        router.add_get("/api/tickets/{ticket_id}", self.get, allow_head=False)
        router.add_patch("/api/tickets/{ticket_id}", self.update)
        router.add_post("/api/tickets/{ticket_id}/comments", self.add_comment)
        router.add_get("/internal/tickets/{ticket_id}", self.document, allow_head=False)

    async def create(self, request: web.Request) -> web.Response:
        principal = principal_of(request, self._verifier)
        body = await read_json_body(request)
        new = decode_body(_new_ticket, body)
        reply, position = await tickets.create_ticket(self._database(), principal, new, attempt_of(request, body))
        self._wrote()
        return reply_response(reply, position)

    async def create_many(self, request: web.Request) -> web.Response:
        principal = principal_of(request, self._verifier)
        body = await read_json_body(request)
        batch = decode_body(_bulk, body)
        reply, position = await bulk.create_tickets(self._database(), principal, batch, attempt_of(request, body))
        self._wrote()
        return reply_response(reply, position)

    async def update(self, request: web.Request) -> web.Response:
        principal = principal_of(request, self._verifier)
        ticket_id = ticket_id_of(request)
        changes = decode_body(_changes, await read_json_body(request))
        ticket, position = await tickets.update_ticket(
            self._database(), principal, ticket_id, changes, expected_version=_expected_version(request)
        )
        self._wrote()
        return json_response(ticket, headers=_written(position) | {"ETag": etag(ticket.version)})

    async def update_many(self, request: web.Request) -> web.Response:
        principal = principal_of(request, self._verifier)
        batch = decode_body(_bulk_update, await read_json_body(request))
        report, position = await bulk.update_tickets(self._database(), principal, batch)
        self._wrote()
        return json_response(report, headers=_written(position))

    async def get(self, request: web.Request) -> web.Response:
        principal = principal_of(request, self._verifier)
        found = await tickets.get_ticket(
            self._database(), principal.organization_id, ticket_id_of(request), requirement_of(request)
        )
        return json_response(found.value, headers=read_headers(found) | {"ETag": etag(found.value.version)})

    async def add_comment(self, request: web.Request) -> web.Response:
        principal = principal_of(request, self._verifier)
        ticket_id = ticket_id_of(request)
        body = await read_json_body(request)
        new = decode_body(_new_comment, body)
        attempt = attempt_of(request, body)
        reply, position = await comments.add_comment(self._database(), principal, ticket_id, new, attempt)
        self._wrote()
        return reply_response(reply, position)

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
        return json_response(found.value, headers=read_headers(found))


def _expected_version(request: web.Request) -> int:
    text = request.headers.get("If-Match")
    if text is None:
        raise Problem("precondition_required", "The If-Match header is missing; it takes the ticket's ETag.")
    match = _VERSION.fullmatch(text.strip())
    if match is None:
        raise Problem("invalid_parameter", 'If-Match must hold one ETag as it was given out, such as "3" or "3-gzip".')
    return int(match[1])


def _written(position: Position) -> dict[str, str]:
    return {HEADER: position.token()}

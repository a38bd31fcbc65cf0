"""Every public endpoint, declared once: the router and the OpenAPI document are made from this table."""

from typing import Any

import msgspec

from libs.common import models, people
from services.gateway.health import Health


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`operation` names the handler in app.py; `problems` are the codes a client may meet besides the common ones."""

    method: str
    path: str
    operation: str
    summary: str
    tag: str
    status: int = 200
    request: Any = None
    response: Any = None
    query: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    cached: bool = False
    if_match: bool = False
    consistency: bool = False
    public: bool = False
    problems: tuple[str, ...] = ()


_LIMIT = {"type": "integer", "minimum": 1, "maximum": 100, "default": 25}
_BODY = ("malformed_json", "body_too_large", "unsupported_media_type", "validation_failed")

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        method="POST",
        path="/api/session",
        operation="sign_in",
        tag="session",
        summary="Sign in with e-mail and password",
        status=201,
        request=people.SignIn,
        response=people.Session,
        public=True,
        problems=(*_BODY, "invalid_credentials"),
    ),
    Endpoint(
        method="GET",
        path="/api/session",
        operation="who_am_i",
        tag="session",
        summary="Who am I",
        response=people.WhoAmI,
    ),
    Endpoint(method="DELETE", path="/api/session", operation="sign_out", tag="session", summary="Sign out", status=204),
    Endpoint(
        method="POST",
        path="/api/keys",
        operation="create_key",
        tag="session",
        summary="Create an API key; the key itself is told this once",
        status=201,
        request=people.NewApiKey,
        response=people.ApiKey,
        problems=_BODY,
    ),
    Endpoint(
        method="GET",
        path="/api/keys",
        operation="list_keys",
        tag="session",
        summary="List the API keys in force",
        response=people.ApiKeyList,
    ),
    Endpoint(
        method="DELETE",
        path="/api/keys/{key_id}",
        operation="revoke_key",
        tag="session",
        summary="Revoke an API key; it stops working everywhere within 2 s",
        status=204,
        problems=("key_not_found",),
    ),
    Endpoint(
        method="POST",
        path="/api/realtime/token",
        operation="realtime_token",
        tag="realtime",
        summary="A short-lived token for Socket.IO",
        response=people.RealtimeToken,
    ),
    Endpoint(
        method="POST",
        path="/api/tickets",
        operation="create_ticket",
        tag="tickets",
        summary="Create a ticket",
        status=201,
        request=models.NewTicket,
        response=models.Ticket,
        consistency=True,
        problems=(*_BODY, "external_id_taken"),
    ),
    Endpoint(
        method="GET",
        path="/api/tickets",
        operation="list_tickets",
        tag="tickets",
        summary="List tickets, newest first",
        response=models.TicketPage,
        consistency=True,
        cached=True,
        query=(
            ("status", "Only tickets of this status.", {"type": "string", "enum": list(models.Status)}),
            ("limit", "Tickets a page.", _LIMIT),
            ("cursor", "The `next_cursor` of the page before.", {"type": "string"}),
        ),
        problems=("invalid_parameter",),
    ),
    Endpoint(
        method="POST",
        path="/api/tickets/bulk",
        operation="create_tickets",
        tag="tickets",
        summary="Create up to 500 tickets; every row's fate is told",
        request=models.BulkCreate,
        response=models.BulkReport,
        consistency=True,
        problems=_BODY,
    ),
    Endpoint(
        method="GET",
        path="/api/tickets/{ticket_id}",
        operation="get_ticket",
        tag="tickets",
        summary="Get a ticket",
        response=models.Ticket,
        consistency=True,
        cached=True,
        problems=("ticket_not_found", "invalid_parameter"),
    ),
    Endpoint(
        method="PATCH",
        path="/api/tickets/{ticket_id}",
        operation="update_ticket",
        tag="tickets",
        summary="Change a ticket that is still at the version in If-Match",
        request=models.TicketChanges,
        response=models.Ticket,
        consistency=True,
        if_match=True,
        problems=(*_BODY, "ticket_not_found", "version_mismatch", "precondition_required", "invalid_parameter"),
    ),
    Endpoint(
        method="POST",
        path="/api/tickets/{ticket_id}/comments",
        operation="add_comment",
        tag="tickets",
        summary="Comment on a ticket",
        status=201,
        request=models.NewComment,
        response=models.Comment,
        consistency=True,
        problems=(*_BODY, "ticket_not_found"),
    ),
    Endpoint(
        method="GET",
        path="/api/tickets/{ticket_id}/comments",
        operation="list_comments",
        tag="tickets",
        summary="List a ticket's comments, oldest first",
        response=models.CommentList,
        consistency=True,
        cached=True,
        problems=("ticket_not_found", "invalid_parameter"),
    ),
    Endpoint(
        method="GET",
        path="/api/search",
        operation="search",
        tag="search",
        summary="Full-text search",
        response=models.SearchResults,
        cached=True,
        query=(
            ("q", 'Words, `"a phrase"`, `-not`, `or`; a bare number finds the ticket.', {"type": "string"}),
            ("limit", "Results.", {**_LIMIT, "maximum": 50, "default": 20}),
        ),
        problems=("invalid_parameter",),
    ),
    Endpoint(
        method="GET",
        path="/api/health",
        operation="health",
        tag="operations",
        summary="Database, Redis, disk and services: ok (200) or degraded (503)",
        response=Health,
        public=True,
    ),
    Endpoint(
        method="GET",
        path="/api/openapi.json",
        operation="openapi",
        tag="operations",
        summary="This document",
        public=True,
    ),
)

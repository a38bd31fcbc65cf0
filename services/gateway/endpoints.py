"""Every public endpoint, declared once: the router and the OpenAPI document are made from this table."""

import enum
from typing import Any

import msgspec

from libs.common import history, models, people, reports
from libs.common.cache import administration
from services.gateway.routes.health import Health


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`operation` names the handler in app.py; `problems` are the codes a client may meet besides the common ones.

    `alone`: the gateway answers by itself, with something public that changes only with its version. `follows` are
    operations that take what the answer tells: their names, and where in the answer their parameters stand.
    """

    method: str
    path: str
    operation: str
    summary: str
    tag: str
    description: str = ""
    status: int = 200
    request: Any = None
    body_required: bool = True
    response: Any = None
    query: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    cached: bool = False
    if_match: bool = False
    idempotent: bool = False
    consistency: bool = False
    public: bool = False
    alone: bool = False
    media_type: str = "application/json"
    follows: tuple[tuple[str, dict[str, str]], ...] = ()
    problems: tuple[str, ...] = ()


_LIMIT = {"type": "integer", "minimum": 1, "maximum": 100, "default": 25}
_DAY = {"type": "string", "format": "date"}
_RANGE = (
    ("from", "The first day, in UTC; 29 days before the last by default.", _DAY),
    ("to", "The last day, in UTC, at most 365 days after the first; today by default.", _DAY),
)
_TICKET_SORTS = ["created_at", "-created_at", "updated_at", "-updated_at"]
_SORT_TEXT = (
    "The order; with a minus the newest first. A ticket that is changed while a client pages by `updated_at` moves in "
    "that order, so it may be met twice or not at all; in the order of creation every ticket keeps its place."
)
_CURSOR_TEXT = "The `next_cursor` of the page before; only with the sort and the filters it was given out for."
_IDEMPOTENT = ("invalid_parameter", "idempotency_key_in_use", "idempotency_key_reused")
_USER = {"format": "uuid"}
_ASSIGNEE = {"type": "string", "anyOf": [_USER, {"enum": ["me", "none"]}]}
_CREATOR = {"type": "string", "anyOf": [_USER, {"enum": ["me"]}]}
_QUERY = {"type": "string", "minLength": 1, "maxLength": 500, "pattern": models.NOT_BLANK}
_BODY = ("malformed_json", "body_too_large", "unsupported_media_type", "validation_failed")


_ID = {"ticket_id": "$response.body#/id"}
_VERSION = {"header.If-Match": "$response.header.ETag"}


def _names(among: type[enum.StrEnum]) -> dict[str, Any]:
    """One name, or several with commas between."""
    one = "|".join(among)
    return {"type": "string", "pattern": f"^({one})(,({one}))*$"}


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        method="POST",
        path="/api/session",
        operation="sign_in",
        tag="session",
        summary="Sign in with e-mail and password",
        description="The session travels in a cookie; its `csrf_token` goes into `X-CSRF-Token` with every request "
        "that changes something. A session that the request came with ends.",
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
    Endpoint(
        method="DELETE",
        path="/api/session",
        operation="sign_out",
        tag="session",
        summary="Sign out",
        description="Ends the session and closes its sockets. An API key cannot be signed out, only revoked.",
        status=204,
        problems=("permission_denied",),
    ),
    Endpoint(
        method="POST",
        path="/api/keys",
        operation="create_key",
        tag="session",
        summary="Create an API key; the key itself is told this once",
        description="Nobody can look the key up later. Only a retry with the same `Idempotency-Key`, within 24 hours, "
        "is told it again.",
        status=201,
        request=people.NewApiKey,
        response=people.ApiKey,
        idempotent=True,
        follows=(("revoke_key", {"key_id": "$response.body#/id"}),),
        problems=(*_BODY, *_IDEMPOTENT),
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
        idempotent=True,
        follows=(
            ("get_ticket", _ID),
            ("update_ticket", _ID | _VERSION),
            ("add_comment", _ID),
            ("list_comments", _ID),
            ("list_history", _ID),
        ),
        problems=(*_BODY, *_IDEMPOTENT, "external_id_taken"),
    ),
    Endpoint(
        method="GET",
        path="/api/tickets",
        operation="list_tickets",
        tag="tickets",
        summary="List tickets by status, priority, assignee or creator, newest first or in another order",
        response=models.TicketPage,
        consistency=True,
        cached=True,
        query=(
            ("status", "Only tickets of this status, or of one of several with commas between.", _names(models.Status)),
            ("priority", "Only tickets of this priority, or of one of several.", _names(models.Priority)),
            ("assigned_to", "Only tickets of this assignee: a user's id, `me` or `none`.", _ASSIGNEE),
            ("user_id", "Only tickets that this user created: a user's id or `me`.", _CREATOR),
            ("sort", _SORT_TEXT, {"type": "string", "enum": _TICKET_SORTS, "default": "-created_at"}),
            ("limit", "Tickets a page.", _LIMIT),
            ("cursor", _CURSOR_TEXT, {"type": "string"}),
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
        idempotent=True,
        problems=(*_BODY, *_IDEMPOTENT),
    ),
    Endpoint(
        method="PATCH",
        path="/api/tickets/bulk",
        operation="update_tickets",
        tag="tickets",
        summary="Change up to 500 tickets that are still at the version in their row; every row's fate is told",
        request=models.BulkUpdate,
        response=models.BulkUpdateReport,
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
        follows=(("update_ticket", _ID | _VERSION),),
        problems=("ticket_not_found", "invalid_parameter"),
    ),
    Endpoint(
        method="PATCH",
        path="/api/tickets/{ticket_id}",
        operation="update_ticket",
        tag="tickets",
        summary="Change a ticket that is still at the version in If-Match",
        description="Nobody's change is lost: if somebody else was faster the answer is 412 with `current_version`. "
        "Get the ticket again, decide anew, and send the new version.",
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
        idempotent=True,
        problems=(*_BODY, *_IDEMPOTENT, "ticket_not_found"),
    ),
    Endpoint(
        method="GET",
        path="/api/tickets/{ticket_id}/comments",
        operation="list_comments",
        tag="tickets",
        summary="List a ticket's comments",
        response=models.CommentPage,
        consistency=True,
        cached=True,
        query=(
            ("sort", "The order.", {"type": "string", "enum": ["created_at", "-created_at"], "default": "created_at"}),
            ("limit", "Comments a page.", _LIMIT),
            ("cursor", _CURSOR_TEXT, {"type": "string"}),
        ),
        problems=("ticket_not_found", "invalid_parameter"),
    ),
    Endpoint(
        method="GET",
        path="/api/tickets/{ticket_id}/history",
        operation="list_history",
        tag="tickets",
        summary="List a ticket's versions: who changed what",
        response=history.HistoryPage,
        consistency=True,
        cached=True,
        query=(
            ("sort", "The order.", {"type": "string", "enum": list(history.HistorySort), "default": "-version"}),
            ("limit", "Versions a page.", _LIMIT),
            ("cursor", _CURSOR_TEXT, {"type": "string"}),
        ),
        problems=("ticket_not_found", "invalid_parameter"),
    ),
    Endpoint(
        method="GET",
        path="/api/audit",
        operation="list_audit",
        tag="session",
        summary="List what was done to users, keys and caches, and who signed in, newest first; for admins",
        response=history.AuditPage,
        consistency=True,
        query=(
            ("action", "Only entries of this action.", {"type": "string", "enum": list(history.Action)}),
            ("limit", "Entries a page.", _LIMIT),
            ("cursor", _CURSOR_TEXT, {"type": "string"}),
        ),
        problems=("permission_denied", "invalid_parameter"),
    ),
    Endpoint(
        method="GET",
        path="/api/search",
        operation="search",
        tag="search",
        summary="Full-text search",
        description="Titles, descriptions and comments, best matches first. The index follows the tickets' events, "
        "as a rule within a second; it knows no consistency token.",
        response=models.SearchResults,
        cached=True,
        query=(
            ("q", 'Words, `"a phrase"`, `-not`, `or`; a bare number finds the ticket.', _QUERY),
            ("limit", "Results.", {**_LIMIT, "maximum": 50, "default": 20}),
        ),
        problems=("invalid_parameter",),
    ),
    Endpoint(
        method="GET",
        path="/api/reports/tickets",
        operation="report_tickets",
        tag="reports",
        summary="How many tickets were created, by status, by assignee or by day",
        response=reports.TicketsReport,
        consistency=True,
        query=(
            ("by", "What to count by.", {"type": "string", "enum": list(reports.By), "default": "status"}),
            *_RANGE,
        ),
        problems=("invalid_parameter",),
    ),
    Endpoint(
        method="GET",
        path="/api/reports/times",
        operation="report_times",
        tag="reports",
        summary="How long tickets created in the range waited for the first response and for their resolution",
        response=reports.TimesReport,
        consistency=True,
        query=_RANGE,
        problems=("invalid_parameter",),
    ),
    Endpoint(
        method="GET",
        path="/api/reports/backlog",
        operation="report_backlog",
        tag="reports",
        summary="How many tickets are unsolved, and how old they are",
        response=reports.BacklogReport,
        consistency=True,
        problems=("invalid_parameter",),
    ),
    Endpoint(
        method="GET",
        path="/api/admin/cache",
        operation="cache_figures",
        tag="operations",
        summary="What the cache holds, and how often it answers; for admins",
        description="Of the gateway process that answers, and of the cache that all of them share.",
        response=administration.CacheFigures,
        problems=("permission_denied",),
    ),
    Endpoint(
        method="POST",
        path="/api/admin/cache/clear",
        operation="clear_cache",
        tag="operations",
        summary="Clear what is cached for the organization: everything, a tag or a prefix; for admins",
        description="What was cleared is not given again: at the gateway that answers from then on, at others within "
        "2 s. It stands in the audit log (`cache.cleared`), where it is written first.",
        request=administration.ClearCache,
        body_required=False,
        response=administration.CacheCleared,
        consistency=True,
        problems=(*_BODY, "permission_denied", "ticket_not_found"),
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
        summary="The API's description as an OpenAPI 3.1 document",
        public=True,
        alone=True,
    ),
    Endpoint(
        method="GET",
        path="/api/docs",
        operation="docs",
        tag="operations",
        summary="The same description as a page to read",
        public=True,
        alone=True,
        media_type="text/html",
    ),
)

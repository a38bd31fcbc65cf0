"""One example of each main model, for the API's description. They are typed, so they cannot go out of date unseen."""

import datetime as dt
import uuid

import msgspec

from libs.common import models, people
from libs.common.cache import administration
from libs.common.models import Priority, Role, Status

_TICKET = uuid.UUID("0196f3a1-5c1e-7c44-9a3b-1d2f6c0b7e11")
_ORGANIZATION = uuid.UUID("5f1d7a0e-52d7-4f2f-a1a9-0c5cb1b3e6a2")
_ADA = uuid.UUID("2b0c4cfb-8f43-4c55-8f0c-2f7d4f7b9a10")
_GRACE = uuid.UUID("9d3a2f61-77c0-4a3e-b4d2-8e5f0a6c1b23")
_OTHER = uuid.UUID("0196f3a1-5c1e-7c44-9a3b-1d2f6c0b7e12")
_KEY = uuid.UUID("7c9e6679-7425-40de-944b-e07fc1f90ae7")
_AT = dt.datetime(2026, 3, 2, 9, 30, tzinfo=dt.UTC)
_LATER = dt.datetime(2026, 3, 2, 9, 42, 11, tzinfo=dt.UTC)

_user = people.User(_ADA, "ada@acme.example", "Ada Lovelace", Role.ADMIN)
_organization = people.Organization(_ORGANIZATION, "acme", "Acme")
_new_ticket = models.NewTicket(
    title="The printer burns",
    description="Smoke from tray two.",
    priority=Priority.HIGH,
    external_id="legacy-4711",
    fields={"room": "2.17"},
)
_ticket = models.Ticket(
    id=_TICKET,
    number=1042,
    organization_id=_ORGANIZATION,
    title=_new_ticket.title,
    description=_new_ticket.description,
    status=Status.OPEN,
    priority=Priority.HIGH,
    user_id=_ADA,
    assigned_to=_GRACE,
    external_id="legacy-4711",
    fields={"room": "2.17"},
    version=2,
    created_at=_AT,
    updated_at=_LATER,
)
_summary = models.TicketSummary(
    id=_TICKET,
    number=_ticket.number,
    title=_ticket.title,
    status=_ticket.status,
    priority=_ticket.priority,
    user_id=_ADA,
    assigned_to=_GRACE,
    version=_ticket.version,
    created_at=_AT,
    updated_at=_LATER,
)
_comment = models.Comment(
    id=uuid.UUID("0196f3b7-0a52-7d0e-8f6a-3b9c5e2d4f61"),
    ticket_id=_TICKET,
    author_id=_GRACE,
    body="I am on my way with a bucket.",
    created_at=_LATER,
)
_found = models.FoundTicket(
    id=_TICKET,
    number=_ticket.number,
    title=_ticket.title,
    status=_ticket.status,
    priority=_ticket.priority,
    created_at=_AT,
)

EXAMPLES: dict[type, msgspec.Struct] = {
    type(example): example
    for example in (
        people.SignIn("acme", "ada@acme.example", "correct horse battery staple"),
        people.Session(_user, _organization, "Zk3vX0r1b9wqLr2T5cJm8eYd", _AT + dt.timedelta(hours=12)),
        people.WhoAmI(_user, _organization, "api_key"),
        people.NewApiKey("nightly import"),
        people.ApiKey(_KEY, "nightly import", "rdk_8sYq", _ADA, _AT),
        people.RealtimeToken("eyJhbGciOiJFZERTQSJ9.e30.c2lnbmF0dXJl", _LATER, "https://desk.example"),
        _new_ticket,
        _ticket,
        _summary,
        models.TicketPage([_summary], "eyJhIjoxfQ"),
        models.TicketChanges(status=Status.PENDING, assigned_to=_GRACE),
        models.NewComment(_comment.body),
        _comment,
        models.CommentPage([_comment], None),
        models.BulkCreate(
            [
                msgspec.Raw(msgspec.json.encode(_new_ticket)),
                msgspec.Raw(msgspec.json.encode(models.NewTicket(title="The coffee is out"))),
            ]
        ),
        models.BulkReport(
            [
                models.BulkResult(index=0, status="exists", id=_TICKET, number=1042),
                models.BulkResult(index=1, status="created", id=_OTHER, number=1043),
            ]
        ),
        models.BulkUpdate(
            [msgspec.Raw(msgspec.json.encode(models.TicketUpdate(id=_TICKET, version=2, status=Status.SOLVED)))]
        ),
        models.BulkUpdateReport([models.BulkUpdateResult(index=0, status="updated", id=_TICKET, version=3)]),
        administration.ClearCache(tag="tickets"),
        models.SearchResults(
            [models.SearchResult(_found, "The <mark>printer</mark> burns", 0.83)],
            2.417,
        ),
    )
}

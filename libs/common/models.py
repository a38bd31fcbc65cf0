"""The ticket domain's wire models: what requests, answers, events and the search index share.

Response models name every field; request models refuse unknown fields.
"""

import datetime as dt
import enum
import uuid
from typing import Annotated

import msgspec
from msgspec import Meta

TITLE_LENGTH = 300  # characters; the covering index idx_tickets_list holds the title, and a btree row at most 2.7 kB
TEXT_LENGTH = 65_536
BULK_ROWS = 500
BODY_BYTES = 1_048_576

# PostgreSQL's text type cannot hold U+0000, so no text field may.
NO_NUL = r"^[^\x00]*$"
# Something in it is blank neither in Python nor in ECMAScript, whose patterns those of the API's description are.
NOT_BLANK = r"^(?=[^\x00]*$)[^\x00]*[^\s\x1c-\x1f\x85\ufeff]"
Title = Annotated[str, Meta(min_length=1, max_length=TITLE_LENGTH, pattern=NOT_BLANK)]
Description = Annotated[str, Meta(max_length=TEXT_LENGTH, pattern=NO_NUL)]
CommentBody = Annotated[str, Meta(min_length=1, max_length=TEXT_LENGTH, pattern=NOT_BLANK)]
ExternalId = Annotated[str, Meta(min_length=1, max_length=200, pattern=NOT_BLANK)]
FieldName = Annotated[str, Meta(min_length=1, max_length=64, pattern=NOT_BLANK)]
FieldValue = Annotated[str, Meta(max_length=1000, pattern=NO_NUL)]
Fields = Annotated[dict[FieldName, FieldValue], Meta(max_length=50)]


class Status(enum.StrEnum):
    OPEN = "open"
    PENDING = "pending"
    SOLVED = "solved"
    CLOSED = "closed"


class Priority(enum.StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    URGENT = "urgent"


class Role(enum.StrEnum):
    """What a user may do: an admin manages keys and users of others as well, an agent works on tickets."""

    ADMIN = "admin"
    AGENT = "agent"


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket after its change number `version` (1 is the creation).

    `first_response_at` is when somebody else than its creator first commented on it, `solved_at` since when it is
    solved or closed.
    """

    id: uuid.UUID
    number: int
    organization_id: uuid.UUID
    title: str
    description: str
    status: Status
    priority: Priority
    user_id: uuid.UUID
    assigned_to: uuid.UUID | None
    external_id: str | None
    fields: dict[str, str]
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime
    first_response_at: dt.datetime | None = None
    solved_at: dt.datetime | None = None


class TicketSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket as lists show it: everything but its long texts."""

    id: uuid.UUID
    number: int
    title: str
    status: Status
    priority: Priority
    user_id: uuid.UUID
    assigned_to: uuid.UUID | None
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime


class TicketPage(msgspec.Struct, frozen=True):
    """`next_cursor` is null on the last page."""

    tickets: list[TicketSummary]
    next_cursor: str | None


class Comment(msgspec.Struct, frozen=True, kw_only=True):
    id: uuid.UUID
    ticket_id: uuid.UUID
    author_id: uuid.UUID
    body: str
    created_at: dt.datetime


class CommentPage(msgspec.Struct, frozen=True):
    """`next_cursor` is null on the last page."""

    comments: list[Comment]
    next_cursor: str | None


class TicketDocument(msgspec.Struct, frozen=True):
    """Everything the search index holds of one ticket."""

    ticket: Ticket
    comments: list[Comment]


class NewTicket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`external_id` is the ticket's name in the system it comes from, unique in the organization."""

    title: Title
    description: Description = ""
    priority: Priority = Priority.NORMAL
    external_id: ExternalId | None = None
    fields: Fields = msgspec.field(default_factory=dict)


class TicketChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A field that is left out stays as it is; `assigned_to: null` takes the assignee away."""

    title: Title | msgspec.UnsetType = msgspec.UNSET
    description: Description | msgspec.UnsetType = msgspec.UNSET
    priority: Priority | msgspec.UnsetType = msgspec.UNSET
    status: Status | msgspec.UnsetType = msgspec.UNSET
    assigned_to: uuid.UUID | msgspec.UnsetType | None = msgspec.UNSET


class NewComment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    body: CommentBody


class BulkCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows are judged one by one, so they stay undecoded here."""

    tickets: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=BULK_ROWS)]


class TicketUpdate(TicketChanges, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of a bulk update: a ticket, the version that the changes are based on, and the changes.

    A row without a version is refused as an update without If-Match is.
    """

    id: uuid.UUID
    version: Annotated[int, Meta(ge=1, lt=2**53)] | msgspec.UnsetType = msgspec.UNSET


class BulkUpdate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows are judged one by one, so they stay undecoded here: each is a `TicketUpdate`."""

    tickets: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=BULK_ROWS)]


class BulkProblem(msgspec.Struct, frozen=True, omit_defaults=True):
    code: str
    title: str
    detail: str | None = None
    errors: list[dict[str, str]] = []
    current_version: int | None = None


class BulkResult(msgspec.Struct, frozen=True, kw_only=True):
    """One row's fate: `created`, `exists` (its external id is known already) or `refused`."""

    index: int
    status: str
    id: uuid.UUID | None = None
    number: int | None = None
    problem: BulkProblem | None = None


class BulkReport(msgspec.Struct, frozen=True):
    results: list[BulkResult]


class BulkUpdateResult(msgspec.Struct, frozen=True, kw_only=True):
    """One row's fate: `updated`, `unchanged` (the changes change nothing) or `refused`.

    `version` is the ticket's version after the batch; null for a row that is refused.
    """

    index: int
    status: str
    id: uuid.UUID | None = None
    version: int | None = None
    problem: BulkProblem | None = None


class BulkUpdateReport(msgspec.Struct, frozen=True):
    results: list[BulkUpdateResult]


class FoundTicket(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket as search results show it."""

    id: uuid.UUID
    number: int
    title: str
    status: Status
    priority: Priority
    created_at: dt.datetime


class SearchResult(msgspec.Struct, frozen=True):
    """`highlight` is HTML: escaped text with the found words in `<mark>`. A higher `score` is a better match."""

    ticket: FoundTicket
    highlight: str
    score: float


class SearchResults(msgspec.Struct, frozen=True):
    """`took_ms` is the time in the search service; a cached answer keeps the time of its making."""

    results: list[SearchResult]
    took_ms: float

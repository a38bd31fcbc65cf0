"""Wire models of what was done: the history of a ticket, and the audit log of an organization."""

import datetime as dt
import enum
import uuid
from typing import Any

import msgspec

from libs.common.events import Actor


class HistorySort(enum.StrEnum):
    OLDEST = "version"
    NEWEST = "-version"


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a ticket: which event told of it, who made it, and each changed field's value [before, after].

    A comment changes `comment_id` from null to its id. Version 1, the creation, changes nothing.
    """

    version: int
    at: dt.datetime
    type: str
    actor: Actor
    changes: dict[str, tuple[Any, Any]]


class HistoryPage(msgspec.Struct, frozen=True):
    """`next_cursor` is null on the last page."""

    entries: list[HistoryEntry]
    next_cursor: str | None


class Action(enum.StrEnum):
    """What the audit log tells of."""

    ORGANIZATION_CREATED = "organization.created"
    USER_CREATED = "user.created"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    SIGN_IN_SUCCEEDED = "sign_in.succeeded"
    SIGN_IN_FAILED = "sign_in.failed"
    CACHE_CLEARED = "cache.cleared"


class AuditActor(msgspec.Struct, frozen=True):
    """Who did it, and by what: `session`, `api_key`, `password`, the `operator`'s command line.

    After a failed sign-in it is `unknown`. The last two have no id.
    """

    id: uuid.UUID | None
    kind: str
    name: str


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """`target_id` is the key, user or organization it was done to; `details` never hold a secret."""

    id: uuid.UUID
    at: dt.datetime
    action: Action
    actor: AuditActor
    target_id: uuid.UUID | None
    details: dict[str, str]


class CacheClear(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Told by the gateway before it clears: `details` say what, in an organization's name."""

    organization_id: uuid.UUID
    actor: AuditActor
    details: dict[str, str]


class AuditPage(msgspec.Struct, frozen=True):
    """`next_cursor` is null on the last page."""

    entries: list[AuditEntry]
    next_cursor: str | None

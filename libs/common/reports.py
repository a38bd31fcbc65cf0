"""What reports answer: wire models of the tickets service and the gateway's OpenAPI document.

Times are in seconds. `as_at` is when a report was made; days are in UTC.
"""

import datetime as dt
import enum
import uuid

import msgspec

from libs.common.models import Status


class By(enum.StrEnum):
    """What tickets are counted by: their status now, their assignee now, or the day of their creation."""

    STATUS = "status"
    ASSIGNEE = "assignee"
    DAY = "day"


class TicketCount(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The tickets of one status, assignee (`assigned_to` is missing: nobody) or day."""

    count: int
    status: Status | None = None
    assigned_to: uuid.UUID | None = None
    day: dt.date | None = None


class TicketsReport(msgspec.Struct, frozen=True, kw_only=True, rename={"first": "from", "last": "to"}):
    """The tickets created from the day `from` to the day `to`, both included.

    By status and by day every one is listed, also without tickets; by assignee the ones with tickets, most first.
    """

    by: By
    first: dt.date
    last: dt.date
    total: int
    counts: list[TicketCount]


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """`count` durations and their percentiles in seconds (interpolated); null where there is no duration."""

    count: int
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class TimesReport(msgspec.Struct, frozen=True, kw_only=True, rename={"first": "from", "last": "to"}):
    """From creation to the first response, and to when it was solved, of the tickets created in the range."""

    first: dt.date
    last: dt.date
    first_response: Times
    resolution: Times


class AgeBucket(msgspec.Struct, frozen=True, kw_only=True):
    """Tickets younger than `below_days` and not in an earlier bucket; null: all that are older."""

    below_days: int | None
    count: int


class BacklogReport(msgspec.Struct, frozen=True, kw_only=True):
    """The tickets that are neither solved nor closed, by age."""

    as_at: dt.datetime
    oldest: float | None
    ages: Times
    buckets: list[AgeBucket]

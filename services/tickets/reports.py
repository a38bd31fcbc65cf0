"""Reports: counts, times and ages of an organization's tickets, each from one snapshot of the analytics replica."""

import datetime as dt
import uuid
from typing import NamedTuple

import asyncpg

from libs.common.consistency import Requirement
from libs.common.models import Status
from libs.common.problems import Problem
from libs.common.reports import AgeBucket, BacklogReport, By, TicketCount, TicketsReport, Times, TimesReport
from services.tickets import store_reports
from services.tickets.database import Database, Found
from services.tickets.store_tickets import STATUS_IDS
from services.tickets.tickets import SOLVED

MOST_DAYS = 366
DEFAULT_DAYS = 30
PERCENTILES = [0.5, 0.9, 0.95, 0.99]
BUCKET_DAYS = [1, 3, 7, 30]


class Range(NamedTuple):
    """Days in UTC, the first and the last one included."""

    first: dt.date
    last: dt.date

    @property
    def start(self) -> dt.datetime:
        return dt.datetime.combine(self.first, dt.time(), dt.UTC)

    @property
    def end(self) -> dt.datetime:
        return dt.datetime.combine(self.last, dt.time(), dt.UTC) + dt.timedelta(days=1)

    @property
    def days(self) -> list[dt.date]:
        return [self.first + dt.timedelta(days=number) for number in range((self.last - self.first).days + 1)]


def range_of(first: dt.date | None, last: dt.date | None, today: dt.date) -> Range:
    """The range that is asked for: up to today and 30 days long where nothing is said.

    Raises:
        Problem: `invalid_parameter` (400) for a range that is empty, longer than 366 days or beyond the calendar.
    """
    until = "" if last else ", which is today, the default,"
    try:
        last = last or today
        first = first or last - dt.timedelta(days=DEFAULT_DAYS - 1)
        asked = Range(first, last)
        length = (asked.end - asked.start).days
    except OverflowError as error:
        raise Problem("invalid_parameter", "The range goes beyond the calendar.") from error
    if not 1 <= length <= MOST_DAYS:
        reason = f"from ({asked.first}) must not be after to ({asked.last}{until.rstrip(',')})."
        if length > MOST_DAYS:
            reason = f"A report is of at most {MOST_DAYS} days; {asked.first} to {asked.last}{until} are {length}."
        raise Problem("invalid_parameter", reason)
    return asked


async def tickets_report(
    database: Database, organization_id: uuid.UUID, requirement: Requirement, by: By, asked: Range
) -> Found[TicketsReport]:
    """How many tickets were created in the range.

    Raises:
        Problem: `service_unavailable` (503) without an analytics replica that includes what is required.
    """

    async def work(connection: asyncpg.Connection) -> TicketsReport:
        counts = await _counts(connection, organization_id, by, asked)
        total = sum(one.count for one in counts)
        return TicketsReport(by=by, first=asked.first, last=asked.last, total=total, counts=counts)

    return await database.report(organization_id, work, requirement.position)


async def times_report(
    database: Database, organization_id: uuid.UUID, requirement: Requirement, asked: Range
) -> Found[TimesReport]:
    """How long tickets created in the range waited for the first response and for their resolution.

    Raises:
        Problem: as `tickets_report`.
    """

    async def work(connection: asyncpg.Connection) -> TimesReport:
        row = await store_reports.times(connection, organization_id, asked.start, asked.end, PERCENTILES)
        return TimesReport(
            first=asked.first,
            last=asked.last,
            first_response=_times(row["responded"], row["first_response"]),
            resolution=_times(row["solved"], row["resolution"]),
        )

    return await database.report(organization_id, work, requirement.position)


async def backlog_report(
    database: Database, organization_id: uuid.UUID, requirement: Requirement
) -> Found[BacklogReport]:
    """How old the tickets are that are neither solved nor closed.

    Raises:
        Problem: as `tickets_report`.
    """
    unsolved = [STATUS_IDS[status] for status in Status if status not in SOLVED]

    async def work(connection: asyncpg.Connection) -> BacklogReport:
        row = await store_reports.backlog_ages(connection, organization_id, unsolved, PERCENTILES, BUCKET_DAYS)
        younger = [*row["younger"], row["count"]]
        bounds = [*BUCKET_DAYS, None]
        buckets = [
            AgeBucket(below_days=bound, count=count - before)
            for bound, before, count in zip(bounds, [0, *younger], younger, strict=False)
        ]
        ages = _times(row["count"], row["percentiles"])
        return BacklogReport(as_at=row["at"], oldest=row["oldest"], ages=ages, buckets=buckets)

    return await database.report(organization_id, work, requirement.position)


async def _counts(
    connection: asyncpg.Connection, organization_id: uuid.UUID, by: By, asked: Range
) -> list[TicketCount]:
    match by:
        case By.STATUS:
            return await _by_status(connection, organization_id, asked)
        case By.ASSIGNEE:
            return await _by_assignee(connection, organization_id, asked)
        case By.DAY:
            return await _by_day(connection, organization_id, asked)


async def _by_status(connection: asyncpg.Connection, organization_id: uuid.UUID, asked: Range) -> list[TicketCount]:
    rows = await store_reports.count_by_status(
        connection, organization_id, asked.start, asked.end, list(STATUS_IDS.values())
    )
    found = {row["status_id"]: row["count"] for row in rows}
    return [TicketCount(status=status, count=found.get(number, 0)) for status, number in STATUS_IDS.items()]


async def _by_assignee(connection: asyncpg.Connection, organization_id: uuid.UUID, asked: Range) -> list[TicketCount]:
    rows = await store_reports.count_by_assignee(connection, organization_id, asked.start, asked.end)
    return [TicketCount(assigned_to=row["assigned_to"], count=row["count"]) for row in rows]


async def _by_day(connection: asyncpg.Connection, organization_id: uuid.UUID, asked: Range) -> list[TicketCount]:
    rows = await store_reports.count_by_day(connection, organization_id, asked.start, asked.end)
    found = {row["day"]: row["count"] for row in rows}
    return [TicketCount(day=day, count=found.get(day, 0)) for day in asked.days]


def _times(count: int, percentiles: list[float] | None) -> Times:
    if percentiles is None:
        return Times(count=count, p50=None, p90=None, p95=None, p99=None)
    p50, p90, p95, p99 = percentiles
    return Times(count=count, p50=p50, p90=p90, p95=p95, p99=p99)

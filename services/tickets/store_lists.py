"""SQL of lists of tickets: one statement for each combination of filters and order.

Every list reads index entries in the order it shows, from ranges that hold its whole filter: one range for each
wanted pair of status and priority. The ranges are merged, and only the rows of the page are fetched from the table.
What a page costs depends on its length, not on how many tickets there are.
"""

import enum
import itertools
import uuid
from collections.abc import Mapping
from typing import Any

import asyncpg
import msgspec

from libs.common.models import Priority, Status, TicketSummary
from services.tickets.cursors import END, PAGE_LIMIT, START, Place
from services.tickets.store_tickets import PRIORITY_IDS, STATUS_IDS, named


class Sort(enum.StrEnum):
    """The order of a list; ties are ordered by id, which is the order of creation."""

    CREATED = "created_at"
    NEWEST = "-created_at"
    UPDATED = "updated_at"
    LAST_UPDATED = "-updated_at"

    @property
    def column(self) -> str:
        return self.removeprefix("-")

    @property
    def descending(self) -> bool:
        return self.startswith("-")


class Filter(enum.StrEnum):
    """Which of the filters a statement has."""

    NONE = "none"
    STATUS = "status"
    PRIORITY = "priority"  # and status, or every status
    ASSIGNEE = "assignee"
    UNASSIGNED = "unassigned"
    USER = "user"
    ASSIGNEE_USER = "assignee and user"
    UNASSIGNED_USER = "unassigned and user"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which tickets a list shows and in which order. No status (or priority) means each of them."""

    statuses: frozenset[Status] = frozenset()
    priorities: frozenset[Priority] = frozenset()
    assigned_to: uuid.UUID | None = None
    unassigned: bool = False
    user_id: uuid.UUID | None = None
    sort: Sort = Sort.NEWEST


_STATUSES = "unnest($5::smallint[]) AS wanted_status (status_id)"
_PAIRS = f"{_STATUSES} CROSS JOIN unnest($6::smallint[]) AS wanted_priority (priority_id)"
_OF_STATUS = "status_id = wanted_status.status_id"
_OF_PAIR = f"{_OF_STATUS} AND priority_id = wanted_priority.priority_id"
_CONDITIONS: Mapping[Filter, str] = {
    Filter.PRIORITY: _OF_PAIR,
    Filter.ASSIGNEE: f"assigned_to = $7 AND {_OF_PAIR}",
    Filter.UNASSIGNED: f"assigned_to IS NULL AND {_OF_PAIR}",
    Filter.USER: f"user_id = $7 AND {_OF_PAIR}",
    # Not "=", which would let the planner read the ranges of a user who may have created most of the tickets.
    Filter.ASSIGNEE_USER: f"assigned_to = $7 AND {_OF_PAIR} AND user_id IS NOT DISTINCT FROM $8",
    Filter.UNASSIGNED_USER: f"user_id = $7 AND {_OF_PAIR} AND assigned_to IS NULL",
}


def _statement(wanted: Filter, sort: Sort) -> str:
    """A page of at most $4 tickets of the organization $1 after the place ($2, $3).

    The constant limit is for the planner, which does not know $4 when it plans for every value; it takes the
    index whose order fits.
    """
    direction, beyond = ("DESC", "<") if sort.descending else ("ASC", ">")
    order = f"ORDER BY at {direction}, id {direction}"
    # To the planner, only "=" makes a column the same for all rows: IS NULL has to be said as an order as well.
    within = order.replace("BY at", f"BY assigned_to {direction}, at") if wanted is Filter.UNASSIGNED else order

    def entries(condition: str = "true") -> str:
        return f"""SELECT * FROM (
            SELECT {sort.column} AS at, id FROM tickets
            WHERE organization_id = $1 AND {condition} AND ({sort.column}, id) {beyond} ($2, $3)
            {within} LIMIT {PAGE_LIMIT + 1}
        ) AS entry LIMIT $4"""

    match wanted:
        case Filter.NONE:
            page = entries()
        case Filter.STATUS:
            page = _merged(_STATUSES, entries(_OF_STATUS), order)
        case _:
            page = _merged(_PAIRS, entries(_CONDITIONS[wanted]), order)
    return f"""
SELECT id, number, title, status_id, priority_id, user_id, assigned_to, version, created_at, updated_at
FROM (
        {page}
) AS page
JOIN tickets USING (id)
WHERE organization_id = $1
{order}"""


def _merged(ranges: str, entries: str, order: str) -> str:
    return f"""SELECT entry.* FROM {ranges} CROSS JOIN LATERAL (
        {entries}
        ) AS entry
        {order} LIMIT $4"""


def _combinations() -> dict[tuple[Filter, Sort], str]:
    pairs = itertools.product(Filter, Sort)
    # In the order of changes these two are read as lists of all pairs, so that no index of their own is kept current.
    by_creation_only = {Filter.NONE, Filter.STATUS}
    return {
        (wanted, sort): _statement(wanted, sort)
        for wanted, sort in pairs
        if not (wanted in by_creation_only and sort.column == "updated_at")
    }


LISTS: Mapping[tuple[Filter, Sort], str] = _combinations()


def list_statement(wanted: Wanted, after: Place | None, limit: int) -> tuple[tuple[Filter, Sort], list[Any]]:
    """Which statement of `LISTS` gives the page, and its arguments but for the first, the organization."""
    arguments: list[Any] = [*(after or (END if wanted.sort.descending else START)), limit]
    kind = _filter(wanted)
    if kind is not Filter.NONE:
        arguments.append(sorted(STATUS_IDS[status] for status in wanted.statuses or Status))
    if kind not in {Filter.NONE, Filter.STATUS}:
        arguments.append(sorted(PRIORITY_IDS[priority] for priority in wanted.priorities or Priority))
    arguments += [one for one in (wanted.assigned_to, wanted.user_id) if one is not None]
    return (kind, wanted.sort), arguments


def _filter(wanted: Wanted) -> Filter:
    of_user = wanted.user_id is not None
    if wanted.unassigned:
        return Filter.UNASSIGNED_USER if of_user else Filter.UNASSIGNED
    if wanted.assigned_to is not None:
        return Filter.ASSIGNEE_USER if of_user else Filter.ASSIGNEE
    if of_user:
        return Filter.USER
    if wanted.priorities or wanted.sort.column == "updated_at":
        return Filter.PRIORITY
    return Filter.STATUS if wanted.statuses else Filter.NONE


async def list_tickets(
    connection: asyncpg.Connection, organization_id: uuid.UUID, wanted: Wanted, after: Place | None, limit: int
) -> list[TicketSummary]:
    """At most `limit` (1 to 101) tickets after a place."""
    which, arguments = list_statement(wanted, after, limit)
    rows = await connection.fetch(LISTS[which], organization_id, *arguments)
    return [TicketSummary(**named(row)) for row in rows]

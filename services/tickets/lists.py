"""Lists of tickets: which a page shows, and where the next one goes on."""

import uuid

import asyncpg

from libs.common.consistency import Requirement
from libs.common.models import TicketPage, TicketSummary
from services.tickets import store_lists
from services.tickets.cursors import Place, read_place, write_place
from services.tickets.database import Database, Found
from services.tickets.store_lists import Sort, Wanted

__all__ = ["Sort", "Wanted", "list_tickets"]


async def list_tickets(
    database: Database,
    organization_id: uuid.UUID,
    requirement: Requirement,
    wanted: Wanted,
    *,
    cursor: str | None,
    limit: int,
) -> Found[TicketPage]:
    """A page of at most `limit` (1 to 100) tickets.

    Pages neither repeat nor skip a ticket that is there all the while and keeps what it is filtered and ordered by.

    Raises:
        Problem: `invalid_parameter` (400) for a cursor that is none, or one of another list.
    """
    of = _description(wanted)
    after = read_place(of, cursor) if cursor is not None else None

    async def work(connection: asyncpg.Connection) -> TicketPage:
        found = await store_lists.list_tickets(connection, organization_id, wanted, after, limit + 1)
        page = found[:limit]
        return TicketPage(page, write_place(of, _place(page[-1], wanted.sort)) if len(found) > limit else None)

    return await database.read(organization_id, requirement, work)


def _place(ticket: TicketSummary, sort: Sort) -> Place:
    return Place(ticket.created_at if sort.column == "created_at" else ticket.updated_at, ticket.id)


def _description(wanted: Wanted) -> str:
    """What a cursor is bound to."""
    assignee = "none" if wanted.unassigned else wanted.assigned_to
    statuses, priorities = (",".join(sorted(names)) for names in (wanted.statuses, wanted.priorities))
    return f"tickets {wanted.sort} {statuses} {priorities} {assignee} {wanted.user_id}"

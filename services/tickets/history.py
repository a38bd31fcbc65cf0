"""The history of a ticket: who made which version, and what it changed. Written by `store_tickets.with_event`."""

import uuid

import asyncpg

from libs.common.consistency import Requirement
from libs.common.history import HistoryPage, HistorySort
from services.tickets import store_history
from services.tickets.cursors import read_cursor, write_cursor
from services.tickets.database import Database, Found
from services.tickets.tickets import ticket_not_found

_VERSION_BYTES = 8


async def list_history(
    database: Database,
    organization_id: uuid.UUID,
    ticket_id: uuid.UUID,
    requirement: Requirement,
    *,
    sort: HistorySort,
    cursor: str | None,
    limit: int,
) -> Found[HistoryPage]:
    """A page of at most `limit` (1 to 100) versions. What is older than the retention is not there any more.

    Raises:
        Problem: `ticket_not_found` (404), or `invalid_parameter` (400) for a cursor that is none, or one of
            another list.
    """
    of = f"history {ticket_id} {sort}"
    after = int.from_bytes(read_cursor(of, cursor, _VERSION_BYTES), "big", signed=True) if cursor is not None else None

    async def work(connection: asyncpg.Connection) -> HistoryPage:
        found = await store_history.page_of_history(
            connection, organization_id, ticket_id, after, limit + 1, newest_first=sort is HistorySort.NEWEST
        )
        if found is None:
            raise ticket_not_found(ticket_id)
        page = found[:limit]
        more = len(found) > limit
        end = page[-1].version.to_bytes(_VERSION_BYTES, "big", signed=True) if more else b""
        return HistoryPage(page, write_cursor(of, end) if more else None)

    return await database.read(organization_id, requirement, work)

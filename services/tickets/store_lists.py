"""SQL of lists of tickets."""

import datetime as dt
import uuid
from typing import Any

import asyncpg

from libs.common.models import Status, TicketSummary
from services.tickets.store_tickets import STATUS_IDS, named

_SUMMARY = "id, number, title, status_id, priority_id, user_id, assigned_to, version, created_at, updated_at"

# A page of all tickets, newest first, after a keyset cursor.
LIST_TICKETS = f"""
SELECT {_SUMMARY} FROM tickets
WHERE organization_id = $1 AND (created_at, id) < ($2, $3)
ORDER BY created_at DESC, id DESC LIMIT $4"""

# The same for one status, by the covering index's order.
LIST_TICKETS_BY_STATUS = f"""
SELECT {_SUMMARY} FROM tickets
WHERE organization_id = $1 AND status_id = $5 AND (created_at, id) < ($2, $3)
ORDER BY created_at DESC, id DESC LIMIT $4"""


async def list_tickets(
    connection: asyncpg.Connection,
    organization_id: uuid.UUID,
    *,
    status: Status | None,
    before: tuple[dt.datetime, uuid.UUID],
    limit: int,
) -> list[TicketSummary]:
    arguments: list[Any] = [organization_id, *before, limit]
    if status is None:
        rows = await connection.fetch(LIST_TICKETS, *arguments)
    else:
        rows = await connection.fetch(LIST_TICKETS_BY_STATUS, *arguments, STATUS_IDS[status])
    return [TicketSummary(**named(row)) for row in rows]

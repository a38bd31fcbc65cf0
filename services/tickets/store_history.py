"""SQL of tickets' histories."""

import uuid

import asyncpg
import msgspec

from libs.common.events import Actor
from libs.common.history import HistoryEntry
from services.tickets.cursors import PAGE_LIMIT

_LAST_VERSION = 2**63 - 1

# A page of a ticket's history after the version $3, oldest first; no row when there is no such ticket, one with nulls
# when the page is empty. Only the partitions of the ticket's lifetime are read. A day more on both sides, for the
# clock may have been set back meanwhile, or be another server's after a promotion. The constant limit is for the
# planner, which does not know $4.
LIST_HISTORY = f"""
SELECT page.version, page.at, page.type, page.actor_id, page.actor_kind, page.actor_name, page.changes
FROM tickets
LEFT JOIN LATERAL (
    SELECT version, at, type, actor_id, actor_kind, actor_name, changes FROM ticket_history
    WHERE organization_id = $1 AND ticket_id = $2 AND version > $3
      AND at BETWEEN tickets.created_at - interval '1 day' AND tickets.updated_at + interval '1 day'
    ORDER BY version LIMIT {PAGE_LIMIT + 1}
) AS page ON true
WHERE tickets.organization_id = $1 AND tickets.id = $2 LIMIT $4"""

# The same, newest first.
LIST_NEWEST_HISTORY = LIST_HISTORY.replace("version > $3", "version < $3").replace("BY version", "BY version DESC")

_changes = msgspec.json.Decoder(dict[str, tuple[object, object]])


async def page_of_history(
    connection: asyncpg.Connection,
    organization_id: uuid.UUID,
    ticket_id: uuid.UUID,
    after: int | None,
    limit: int,
    *,
    newest_first: bool,
) -> list[HistoryEntry] | None:
    """At most `limit` (1 to 101) versions beyond `after`; None when there is no such ticket."""
    statement, start = (LIST_NEWEST_HISTORY, _LAST_VERSION) if newest_first else (LIST_HISTORY, 0)
    rows = await connection.fetch(statement, organization_id, ticket_id, start if after is None else after, limit)
    if not rows:
        return None
    return [_entry(row) for row in rows if row["version"] is not None]


def _entry(row: asyncpg.Record) -> HistoryEntry:
    return HistoryEntry(
        version=row["version"],
        at=row["at"],
        type=row["type"],
        actor=Actor(id=row["actor_id"], kind=row["actor_kind"], name=row["actor_name"]),
        changes=_changes.decode(row["changes"]),
    )

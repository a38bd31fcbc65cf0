"""SQL of the audit log."""

import uuid
from collections.abc import Mapping

import asyncpg
import msgspec

from libs.common.history import Action, AuditActor, AuditEntry
from services.tickets.cursors import PAGE_LIMIT, Place

INSERT_AUDIT = """
INSERT INTO audit_log (organization_id, actor_id, actor_kind, actor_name, action, target_id, details)
VALUES ($1, $2, $3, $4, $5, $6, $7)"""

# A page of the log before the place ($2, $3), newest first. What stands twice about `at` leaves out partitions. The
# constant limit is for the planner, which does not know $4.
LIST_AUDIT = f"""
SELECT * FROM (
    SELECT id, at, actor_id, actor_kind, actor_name, action, target_id, details FROM audit_log
    WHERE organization_id = $1 AND at <= $2 AND (at, id) < ($2, $3)
    ORDER BY at DESC, id DESC LIMIT {PAGE_LIMIT + 1}
) AS page LIMIT $4"""

# The same of one action.
LIST_AUDIT_OF_ACTION = LIST_AUDIT.replace("organization_id = $1", "organization_id = $1 AND action = $5")

_details = msgspec.json.Decoder(dict[str, str])


async def insert_audit(
    connection: asyncpg.Connection,
    organization_id: uuid.UUID,
    actor: AuditActor,
    action: Action,
    *,
    target_id: uuid.UUID | None,
    details: Mapping[str, str],
) -> None:
    await connection.execute(
        INSERT_AUDIT,
        organization_id,
        actor.id,
        actor.kind,
        actor.name,
        action,
        target_id,
        msgspec.json.encode(details).decode(),
    )


async def page_of_audit(
    connection: asyncpg.Connection, organization_id: uuid.UUID, action: Action | None, before: Place, limit: int
) -> list[AuditEntry]:
    """At most `limit` (1 to 101) entries before a place."""
    if action is None:
        rows = await connection.fetch(LIST_AUDIT, organization_id, *before, limit)
    else:
        rows = await connection.fetch(LIST_AUDIT_OF_ACTION, organization_id, *before, limit, action)
    return [_entry(row) for row in rows]


def _entry(row: asyncpg.Record) -> AuditEntry:
    return AuditEntry(
        id=row["id"],
        at=row["at"],
        action=Action(row["action"]),
        actor=AuditActor(row["actor_id"], row["actor_kind"], row["actor_name"]),
        target_id=row["target_id"],
        details=_details.decode(row["details"]),
    )

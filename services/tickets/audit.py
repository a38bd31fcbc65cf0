"""The audit log: what was done to organizations, users, keys and caches, and who signed in. No secret is in it."""

import uuid
from collections.abc import Mapping

import asyncpg

from libs.common.consistency import Position, Requirement
from libs.common.history import Action, AuditActor, AuditPage, CacheClear
from libs.common.identity import Principal
from libs.common.models import Role
from libs.common.people import User
from libs.common.problems import Problem
from services.tickets import store_audit
from services.tickets.cursors import END, Place, read_place, write_place
from services.tickets.database import Database, Found

OPERATOR = AuditActor(None, "operator", "")
UNKNOWN = AuditActor(None, "unknown", "")


def acting(principal: Principal) -> AuditActor:
    return AuditActor(principal.user_id, principal.credential, principal.name)


def signing_in(user: User) -> AuditActor:
    return AuditActor(user.id, "password", user.name)


async def record(
    connection: asyncpg.Connection,
    organization_id: uuid.UUID,
    actor: AuditActor,
    action: Action,
    *,
    target_id: uuid.UUID | None,
    details: Mapping[str, str] | None = None,
) -> None:
    """Write an entry, in the transaction of what it tells of."""
    await store_audit.insert_audit(
        connection, organization_id, actor, action, target_id=target_id, details=details or {}
    )


async def record_cache_clear(database: Database, clear: CacheClear) -> Position:
    """Write an entry about the gateway's cache; the position from which it can be read."""
    async with database.write(clear.organization_id) as write:
        await record(
            write.connection,
            clear.organization_id,
            clear.actor,
            Action.CACHE_CLEARED,
            target_id=clear.organization_id,
            details=clear.details,
        )
    return write.position


async def list_audit(
    database: Database,
    principal: Principal,
    requirement: Requirement,
    *,
    action: Action | None,
    cursor: str | None,
    limit: int,
) -> Found[AuditPage]:
    """A page of at most `limit` (1 to 100) entries, newest first.

    Raises:
        Problem: `permission_denied` (403) for everybody but admins, or `invalid_parameter` (400) for a cursor that is
            none, or one of another list.
    """
    if principal.role is not Role.ADMIN:
        raise Problem("permission_denied", "Only admins may read the audit log.")
    of = f"audit {action}"
    before = read_place(of, cursor) if cursor is not None else END

    async def work(connection: asyncpg.Connection) -> AuditPage:
        found = await store_audit.page_of_audit(connection, principal.organization_id, action, before, limit + 1)
        page = found[:limit]
        return AuditPage(page, write_place(of, Place(page[-1].at, page[-1].id)) if len(found) > limit else None)

    return await database.read(principal.organization_id, requirement, work)

"""Tickets: their rules, each write one transaction with its event in the outbox."""

import datetime as dt
import uuid

import asyncpg
import msgspec
import structlog

from libs.common.consistency import Position, Requirement
from libs.common.events import EventTypes
from libs.common.identity import Principal
from libs.common.models import NewTicket, Status, Ticket, TicketChanges
from libs.common.problems import FieldError, Problem
from services.tickets import outbox, store_tickets
from services.tickets.database import Database, Found
from services.tickets.idempotency import Attempt, Reply, once
from services.tickets.outbox import Changes

SOLVED = frozenset({Status.SOLVED, Status.CLOSED})
log = structlog.get_logger()


async def create_ticket(
    database: Database, principal: Principal, new: NewTicket, attempt: Attempt | None = None
) -> tuple[Reply, Position]:
    """Create a ticket, once for an `attempt`; the reply tells it, the position includes it.

    Raises:
        Problem: `external_id_taken` (409), and as `once`.
    """

    async def work(connection: asyncpg.Connection) -> Reply:
        drawn = await store_tickets.next_number(connection, principal.organization_id)
        ticket = store_tickets.new_ticket(drawn, principal.organization_id, principal.user_id, new)
        event = outbox.row(EventTypes.CREATED, ticket, event_id=drawn["event_id"], principal=principal)
        await store_tickets.insert_ticket(connection, ticket, event)
        return Reply.of(ticket, headers={"Location": f"/api/tickets/{ticket.id}", "ETag": etag(ticket.version)})

    try:
        return await once(database, principal, attempt, work)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "tickets_external_id_key":
            raise
        raise Problem("external_id_taken", f"The external id {new.external_id!r} is in use.") from error


async def update_ticket(
    database: Database,
    principal: Principal,
    ticket_id: uuid.UUID,
    wanted: TicketChanges,
    *,
    expected_version: int,
) -> tuple[Ticket, Position]:
    """Change a ticket that is still at `expected_version`. Changes that change nothing make no new version.

    Raises:
        Problem: `ticket_not_found` (404), `version_mismatch` (412) or `validation_failed` (422) for an assignee
            who is no user of the organization.
    """
    try:
        async with database.write(principal.organization_id) as write:
            current = await existing_ticket(write.connection, principal.organization_id, ticket_id, lock=True)
            require_version(current, expected_version)
            changes = changes_of(current, wanted)
            if changes:
                stamp = await store_tickets.new_id_and_time(write.connection)
                current = changed_ticket(current, changes, stamp["at"])
                event = outbox.row(
                    outbox.type_of_update(changes),
                    current,
                    event_id=stamp["event_id"],
                    changes=changes,
                    principal=principal,
                )
                await store_tickets.update_ticket(write.connection, current, event)
    except asyncpg.ForeignKeyViolationError as error:
        if error.constraint_name != "tickets_assigned_to_fkey":
            raise
        raise unknown_assignee() from error
    return current, write.position


def require_version(ticket: Ticket, expected: int) -> None:
    """Refuse a change that is based on another version.

    Raises:
        Problem: `version_mismatch` (412) with the current version.
    """
    if ticket.version != expected:
        raise Problem(
            "version_mismatch",
            f"The ticket is at version {ticket.version}, the change is based on {expected}.",
            current_version=ticket.version,
        )


def changes_of(ticket: Ticket, wanted: TicketChanges) -> Changes:
    """What of the wanted changes does change the ticket."""
    return {
        name: (old, new)
        for name in TicketChanges.__struct_fields__
        if (new := getattr(wanted, name)) is not msgspec.UNSET and new != (old := getattr(ticket, name))
    }


def unknown_assignee() -> Problem:
    message = "There is no such user in the organization"
    return Problem("validation_failed", message, errors=[FieldError("/assigned_to", message)])


def changed_ticket(ticket: Ticket, changes: Changes, at: dt.datetime) -> Ticket:
    """The next version of a ticket."""
    changed = msgspec.structs.replace(
        ticket, **{name: new for name, (_old, new) in changes.items()}, version=ticket.version + 1, updated_at=at
    )
    if changed.status not in SOLVED:
        return msgspec.structs.replace(changed, solved_at=None)
    return msgspec.structs.replace(changed, solved_at=ticket.solved_at or at)


async def get_ticket(
    database: Database, organization_id: uuid.UUID, ticket_id: uuid.UUID, requirement: Requirement
) -> Found[Ticket]:
    """A ticket as a server that includes what is required sees it.

    Raises:
        Problem: `ticket_not_found` (404).
    """

    async def work(connection: asyncpg.Connection) -> Ticket:
        return await existing_ticket(connection, organization_id, ticket_id)

    return await database.read(organization_id, requirement, work)


def etag(version: int) -> str:
    """A ticket's strong entity tag (RFC 9110, section 8.8.3)."""
    return f'"{version}"'


async def existing_ticket(
    connection: asyncpg.Connection, organization_id: uuid.UUID, ticket_id: uuid.UUID, *, lock: bool = False
) -> Ticket:
    """A ticket that must be there; `lock` keeps others from changing it until the transaction ends.

    Raises:
        Problem: `ticket_not_found` (404).
    """
    ticket = await store_tickets.select_ticket(connection, organization_id, ticket_id, lock=lock)
    if ticket is None:
        raise ticket_not_found(ticket_id)
    return ticket


def ticket_not_found(ticket_id: uuid.UUID) -> Problem:
    return Problem("ticket_not_found", f"There is no ticket {ticket_id} in the organization.")

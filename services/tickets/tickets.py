"""Tickets: their rules, each write one transaction with its event in the outbox."""

import base64
import binascii
import datetime as dt
import uuid

import asyncpg
import msgspec
import structlog

from libs.common.consistency import Position, Requirement
from libs.common.events import EventTypes
from libs.common.identity import Principal
from libs.common.models import NewTicket, Status, Ticket, TicketChanges, TicketPage
from libs.common.problems import FieldError, Problem
from services.tickets import outbox, store_lists, store_tickets
from services.tickets.database import Database, Found
from services.tickets.outbox import Changes

PAGE_LIMIT = 100
SOLVED = frozenset({Status.SOLVED, Status.CLOSED})
_NEWEST = (dt.datetime(9999, 1, 1, tzinfo=dt.UTC), uuid.UUID(int=2**128 - 1))
log = structlog.get_logger()


async def create_ticket(database: Database, principal: Principal, new: NewTicket) -> tuple[Ticket, Position]:
    """Create a ticket; the position includes it.

    Raises:
        Problem: `external_id_taken` (409).
    """
    try:
        async with database.write(principal.organization_id) as write:
            drawn = await store_tickets.next_number(write.connection, principal.organization_id)
            ticket = store_tickets.new_ticket(drawn, principal.organization_id, principal.user_id, new)
            event = outbox.row(
                EventTypes.CREATED,
                ticket,
                event_id=drawn["event_id"],
                principal=principal,
            )
            await store_tickets.insert_ticket(write.connection, ticket, event)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "tickets_external_id_key":
            raise
        raise Problem("external_id_taken", f"The external id {new.external_id!r} is in use.") from error
    return ticket, write.position


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
            if current.version != expected_version:
                raise Problem(
                    "version_mismatch",
                    f"The ticket is at version {current.version}, If-Match names {expected_version}.",
                    current_version=current.version,
                )
            changes: Changes = {
                name: (getattr(current, name), value)
                for name in wanted.__struct_fields__
                if (value := getattr(wanted, name)) is not msgspec.UNSET and value != getattr(current, name)
            }
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
        message = "There is no such user in the organization"
        raise Problem("validation_failed", message, errors=[FieldError("/assigned_to", message)]) from error
    return current, write.position


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


async def list_tickets(
    database: Database,
    organization_id: uuid.UUID,
    requirement: Requirement,
    *,
    status: Status | None,
    cursor: str | None,
    limit: int,
) -> Found[TicketPage]:
    """A page of at most `limit` (1 to 100) tickets, newest first.

    Raises:
        Problem: `invalid_parameter` (400) for a cursor that is none.
    """
    before = _read_cursor(cursor) if cursor else _NEWEST

    async def work(connection: asyncpg.Connection) -> TicketPage:
        found = await store_lists.list_tickets(
            connection, organization_id, status=status, before=before, limit=limit + 1
        )
        page = found[:limit]
        more = len(found) > limit
        return TicketPage(page, _write_cursor(page[-1].created_at, page[-1].id) if more else None)

    return await database.read(organization_id, requirement, work)


async def existing_ticket(
    connection: asyncpg.Connection, organization_id: uuid.UUID, ticket_id: uuid.UUID, *, lock: bool = False
) -> Ticket:
    """A ticket that must be there; `lock` keeps others from changing it until the transaction ends.

    Raises:
        Problem: `ticket_not_found` (404).
    """
    ticket = await store_tickets.select_ticket(connection, organization_id, ticket_id, lock=lock)
    if ticket is None:
        raise Problem("ticket_not_found", f"There is no ticket {ticket_id} in the organization.")
    return ticket


def _write_cursor(created_at: dt.datetime, ticket_id: uuid.UUID) -> str:
    """Where a page ended: microseconds since 1970 and the ticket's id, 24 bytes."""
    microseconds = (created_at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
    return base64.urlsafe_b64encode(microseconds.to_bytes(8, "big") + ticket_id.bytes).decode()


def _read_cursor(text: str) -> tuple[dt.datetime, uuid.UUID]:
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
        if len(raw) != 24:
            raise ValueError(text)
        microseconds = int.from_bytes(raw[:8], "big")
        moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=microseconds)
    except (ValueError, OverflowError, binascii.Error) as error:
        raise Problem("invalid_parameter", "The cursor is not one that this API gave out.") from error
    return moment, uuid.UUID(bytes=raw[8:])

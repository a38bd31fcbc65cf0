"""Bulk creation and update: one transaction a batch, each row's fate told."""

import uuid
from collections.abc import Sequence

import asyncpg
import msgspec

from libs.common.consistency import Position
from libs.common.events import EventTypes
from libs.common.identity import Principal
from libs.common.models import (
    BulkCreate,
    BulkProblem,
    BulkReport,
    BulkResult,
    BulkUpdate,
    BulkUpdateReport,
    BulkUpdateResult,
    NewTicket,
    Ticket,
    TicketUpdate,
)
from libs.common.problems import FieldError, Problem, decode_body
from services.tickets import outbox, store_bulk, store_tickets
from services.tickets.database import Database
from services.tickets.idempotency import Attempt, Reply, once
from services.tickets.outbox import Changes, OutboxRow
from services.tickets.tickets import changed_ticket, changes_of, require_version, ticket_not_found, unknown_assignee

_new_ticket = msgspec.json.Decoder(NewTicket)
_update = msgspec.json.Decoder(TicketUpdate)


async def create_tickets(
    database: Database, principal: Principal, batch: BulkCreate, attempt: Attempt | None = None
) -> tuple[Reply, Position]:
    """Create the rows that can be created, all in one transaction with their events; the reply is a `BulkReport`.

    A row that is not valid is refused by itself. A row whose external id is known, in the database or earlier in the
    batch, is reported as `exists` with the ticket that has it, so a batch of such rows can be sent again; any other
    needs an `attempt` for that.

    Raises:
        Problem: as `once`.
    """
    results: dict[int, BulkResult] = {}
    valid: list[tuple[int, NewTicket]] = []
    for index, raw in enumerate(batch.tickets):
        try:
            valid.append((index, decode_body(_new_ticket, bytes(raw))))
        except Problem as problem:
            results[index] = BulkResult(index=index, status="refused", problem=_told(problem))

    async def work(connection: asyncpg.Connection) -> Reply:
        results.update(await _created(connection, principal, valid))
        return Reply.of(BulkReport([results[index] for index in range(len(batch.tickets))]), status=200)

    return await once(database, principal, attempt, work)


async def _created(
    connection: asyncpg.Connection, principal: Principal, valid: Sequence[tuple[int, NewTicket]]
) -> dict[int, BulkResult]:
    """Create what is not known yet; the fates by index."""
    results: dict[int, BulkResult] = {}
    numbers = await store_bulk.lock_numbers(connection, principal.organization_id)
    known = await store_bulk.known_external_ids(
        connection,
        principal.organization_id,
        [new.external_id for _index, new in valid if new.external_id is not None],
    )
    ids = iter(await store_bulk.new_ids(connection, len(valid)))
    tickets: list[Ticket] = []
    events: list[OutboxRow] = []
    for index, new in valid:
        if new.external_id is not None and new.external_id in known:
            ticket_id, number = known[new.external_id]
            results[index] = BulkResult(index=index, status="exists", id=ticket_id, number=number)
            continue
        ticket_id, event_id = next(ids)
        number = numbers["last_ticket_number"] + len(tickets) + 1
        drawn = {"ticket_id": ticket_id, "number": number, "at": numbers["at"]}
        ticket = store_tickets.new_ticket(drawn, principal.organization_id, principal.user_id, new)
        tickets.append(ticket)
        events.append(outbox.row(EventTypes.CREATED, ticket, event_id=event_id, principal=principal))
        if new.external_id is not None:
            known[new.external_id] = (ticket_id, number)
        results[index] = BulkResult(index=index, status="created", id=ticket_id, number=number)
    if tickets:
        await store_bulk.insert_tickets(connection, tickets, events)
    return results


async def update_tickets(
    database: Database, principal: Principal, batch: BulkUpdate
) -> tuple[BulkUpdateReport, Position]:
    """Change the tickets that are still at the version their row names, all in one transaction with their events.

    Each other row is refused by itself: `validation_failed` (also for an assignee who is no user of the organization,
    and for a ticket that an earlier row names), `precondition_required` without a version, `ticket_not_found` or
    `version_mismatch`. A batch that is sent again changes nothing twice.
    """
    results: dict[int, BulkUpdateResult] = {}
    rows: dict[uuid.UUID, tuple[int, TicketUpdate]] = {}
    for index, raw in enumerate(batch.tickets):
        try:
            update = decode_body(_update, bytes(raw))
            if update.id in rows:
                message = f"Row {rows[update.id][0]} of the batch names this ticket already"
                raise Problem("validation_failed", message, errors=[FieldError("/id", message)])
            rows[update.id] = (index, update)
        except Problem as problem:
            results[index] = BulkUpdateResult(index=index, status="refused", problem=_told(problem))
    async with database.write(principal.organization_id) as write:
        results.update(await _updated(write.connection, principal, list(rows.values())))
    return BulkUpdateReport([results[index] for index in range(len(batch.tickets))]), write.position


async def _updated(
    connection: asyncpg.Connection, principal: Principal, rows: Sequence[tuple[int, TicketUpdate]]
) -> dict[int, BulkUpdateResult]:
    """Change what may be changed; the fates by index."""
    organization_id = principal.organization_id
    current = await store_bulk.lock_tickets(connection, organization_id, [update.id for _index, update in rows])
    wanted = {update.assigned_to for _index, update in rows if isinstance(update.assigned_to, uuid.UUID)}
    assignees = await store_bulk.known_users(connection, organization_id, list(wanted)) if wanted else set()
    results: dict[int, BulkUpdateResult] = {}
    changed: list[tuple[int, Ticket, Changes]] = []
    for index, update in rows:
        try:
            ticket, changes = _judged(current.get(update.id), update, assignees)
        except Problem as problem:
            results[index] = BulkUpdateResult(index=index, status="refused", id=update.id, problem=_told(problem))
            continue
        if changes:
            changed.append((index, ticket, changes))
        else:
            results[index] = BulkUpdateResult(index=index, status="unchanged", id=ticket.id, version=ticket.version)
    if not changed:
        return results
    event_ids, at = await store_bulk.new_event_ids(connection, len(changed))
    tickets: list[Ticket] = []
    events: list[OutboxRow] = []
    for event_id, (index, before, changes) in zip(event_ids, changed, strict=True):
        ticket = changed_ticket(before, changes, at)
        event_type = outbox.type_of_update(changes)
        tickets.append(ticket)
        events.append(outbox.row(event_type, ticket, event_id=event_id, changes=changes, principal=principal))
        results[index] = BulkUpdateResult(index=index, status="updated", id=ticket.id, version=ticket.version)
    await store_bulk.update_tickets(connection, tickets, events)
    return results


def _judged(ticket: Ticket | None, update: TicketUpdate, assignees: set[uuid.UUID]) -> tuple[Ticket, Changes]:
    """The ticket and what of it changes.

    Raises:
        Problem: the reason why the row is refused.
    """
    if update.version is msgspec.UNSET:
        raise Problem("precondition_required", "The row needs the version that the changes are based on.")
    if ticket is None:
        raise ticket_not_found(update.id)
    require_version(ticket, update.version)
    changes = changes_of(ticket, update)
    if "assigned_to" in changes and update.assigned_to is not None and update.assigned_to not in assignees:
        raise unknown_assignee()
    return ticket, changes


def _told(problem: Problem) -> BulkProblem:
    return BulkProblem(
        code=problem.code,
        title=problem.title,
        detail=problem.detail,
        errors=[{"pointer": error.pointer, "message": error.message} for error in problem.errors],
        current_version=problem.current_version,
    )

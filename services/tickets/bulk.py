"""Bulk creation: one transaction a batch, each row's fate told."""

import msgspec

from libs.common.consistency import Position
from libs.common.events import EventTypes
from libs.common.identity import Principal
from libs.common.models import BulkCreate, BulkProblem, BulkReport, BulkResult, NewTicket, Ticket
from libs.common.problems import Problem, decode_body
from services.tickets import outbox, store_bulk, store_tickets
from services.tickets.database import Database
from services.tickets.outbox import OutboxRow

_decoder = msgspec.json.Decoder(NewTicket)


async def create_tickets(database: Database, principal: Principal, batch: BulkCreate) -> tuple[BulkReport, Position]:
    """Create the rows that can be created, all in one transaction with their events.

    A row that is not valid is refused by itself. A row whose external id is known, in the database or earlier in the
    batch, is reported as `exists` with the ticket that has it, so a batch can be sent again.
    """
    results: dict[int, BulkResult] = {}
    valid: list[tuple[int, NewTicket]] = []
    for index, raw in enumerate(batch.tickets):
        try:
            valid.append((index, decode_body(_decoder, bytes(raw))))
        except Problem as problem:
            results[index] = _refused(index, problem)
    async with database.write(principal.organization_id) as write:
        connection = write.connection
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
    return BulkReport([results[index] for index in range(len(batch.tickets))]), write.position


def _refused(index: int, problem: Problem) -> BulkResult:
    told = BulkProblem(
        code=problem.code,
        title=problem.title,
        detail=problem.detail,
        errors=[{"pointer": error.pointer, "message": error.message} for error in problem.errors],
    )
    return BulkResult(index=index, status="refused", problem=told)

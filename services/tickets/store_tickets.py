"""SQL of tickets and comments."""

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from libs.common.models import Comment, NewTicket, Priority, Status, Ticket, TicketSummary
from services.tickets.outbox import OutboxRow

STATUS_IDS = {status: number for number, status in enumerate(Status, start=1)}
PRIORITY_IDS = {priority: number for number, priority in enumerate(Priority, start=1)}
_STATUSES = {number: status for status, number in STATUS_IDS.items()}
_PRIORITIES = {number: priority for priority, number in PRIORITY_IDS.items()}

_COLUMNS = """id, number, organization_id, title, description, status_id, priority_id, user_id, assigned_to,
       external_id, fields, version, created_at, updated_at"""

# Draw the next number of the organization, and the ids and the time of what will bear it. The row lock makes numbers
# gapless and in order of creation; it is held until COMMIT, by this tenant's creations alone.
NEXT_NUMBER = """
UPDATE organizations SET last_ticket_number = last_ticket_number + 1 WHERE id = $1
RETURNING last_ticket_number AS number, uuidv7() AS ticket_id, uuidv7() AS event_id, clock_timestamp() AS at"""

# Insert a ticket and its event; the position in the outbox is drawn here, after every lock.
INSERT_TICKET = """
WITH ticket AS (
    INSERT INTO tickets (organization_id, id, number, title, description, status_id, priority_id, user_id,
                         external_id, fields, version, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1, $11, $11)
)
INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, traceparent, created_at)
VALUES ($1, $2, 1, $12, $13, $14, $15, $16, $11)"""

# Hold the organization's numbers, so that nobody else creates meanwhile.
LOCK_NUMBERS = """
SELECT last_ticket_number, clock_timestamp() AS at FROM organizations WHERE id = $1 FOR NO KEY UPDATE"""

# Which of these external ids are known.
KNOWN_EXTERNAL_IDS = """
SELECT external_id, id, number FROM tickets WHERE organization_id = $1 AND external_id = ANY($2)"""

NEW_IDS = "SELECT uuidv7() AS ticket_id, uuidv7() AS event_id FROM generate_series(1, $1)"

# Insert many tickets with their events and move the organization's counter on, in one statement.
INSERT_TICKETS = """
WITH counter AS (
    UPDATE organizations SET last_ticket_number = $2 WHERE id = $1
), ticket AS (
    INSERT INTO tickets (organization_id, id, number, title, description, status_id, priority_id, user_id,
                         external_id, fields, version, created_at, updated_at)
    SELECT $1, id, number, title, description, $3, priority_id, $4, external_id, fields::jsonb, 1, $5, $5
    FROM unnest($6::uuid[], $7::bigint[], $8::text[], $9::text[], $10::smallint[], $11::text[], $12::text[])
        AS new (id, number, title, description, priority_id, external_id, fields)
)
INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, traceparent, created_at)
SELECT $1, ticket_id, 1, shard, event_id, $13, data, $14, $5
FROM unnest($6::uuid[], $15::smallint[], $16::uuid[], $17::bytea[]) AS new (ticket_id, shard, event_id, data)"""

SELECT_TICKET = f"SELECT {_COLUMNS} FROM tickets WHERE organization_id = $1 AND id = $2"

# The same, locked: what an update reads stays true until its COMMIT.
LOCK_TICKET = SELECT_TICKET + " FOR NO KEY UPDATE"

# Write a ticket's new state and its event; the row is locked already, the position is drawn now.
UPDATE_TICKET = """
WITH ticket AS (
    UPDATE tickets SET title = $3, description = $4, status_id = $5, priority_id = $6, assigned_to = $7,
                       version = $8, updated_at = $9
    WHERE organization_id = $1 AND id = $2
)
INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, traceparent, created_at)
VALUES ($1, $2, $8, $10, $11, $12, $13, $14, $9)"""

# Write a comment, its ticket's new version and the event.
INSERT_COMMENT = """
WITH ticket AS (
    UPDATE tickets SET version = $3, updated_at = $4 WHERE organization_id = $1 AND id = $2
), comment AS (
    INSERT INTO comments (organization_id, id, ticket_id, author_id, body, created_at)
    VALUES ($1, $5, $2, $6, $7, $4)
)
INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, traceparent, created_at)
VALUES ($1, $2, $3, $8, $9, $10, $11, $12, $4)"""

SELECT_COMMENTS = """
SELECT id, ticket_id, author_id, body, created_at FROM comments
WHERE organization_id = $1 AND ticket_id = $2 ORDER BY id LIMIT $3"""

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

NEW_ID_AND_TIME = "SELECT uuidv7() AS id, uuidv7() AS event_id, clock_timestamp() AS at"


async def next_number(connection: asyncpg.Connection, organization_id: uuid.UUID) -> asyncpg.Record:
    return await connection.fetchrow(NEXT_NUMBER, organization_id)


async def insert_ticket(connection: asyncpg.Connection, ticket: Ticket, event: OutboxRow) -> None:
    await connection.execute(
        INSERT_TICKET,
        ticket.organization_id,
        ticket.id,
        ticket.number,
        ticket.title,
        ticket.description,
        STATUS_IDS[ticket.status],
        PRIORITY_IDS[ticket.priority],
        ticket.user_id,
        ticket.external_id,
        _fields(ticket.fields),
        ticket.created_at,
        event.shard,
        event.event_id,
        event.type,
        event.data,
        event.traceparent,
    )


async def lock_numbers(connection: asyncpg.Connection, organization_id: uuid.UUID) -> asyncpg.Record:
    return await connection.fetchrow(LOCK_NUMBERS, organization_id)


async def known_external_ids(
    connection: asyncpg.Connection, organization_id: uuid.UUID, external_ids: Sequence[str]
) -> dict[str, tuple[uuid.UUID, int]]:
    rows = await connection.fetch(KNOWN_EXTERNAL_IDS, organization_id, external_ids)
    return {row["external_id"]: (row["id"], row["number"]) for row in rows}


async def new_ids(connection: asyncpg.Connection, count: int) -> list[tuple[uuid.UUID, uuid.UUID]]:
    """`count` pairs of a ticket's and an event's id, both UUIDv7."""
    return [(row["ticket_id"], row["event_id"]) for row in await connection.fetch(NEW_IDS, count)]


async def insert_tickets(
    connection: asyncpg.Connection, tickets: Sequence[Ticket], events: Sequence[OutboxRow]
) -> None:
    """Insert tickets of one organization, user and moment, in the order of their numbers."""
    first = tickets[0]
    await connection.execute(
        INSERT_TICKETS,
        first.organization_id,
        tickets[-1].number,
        STATUS_IDS[first.status],
        first.user_id,
        first.created_at,
        [ticket.id for ticket in tickets],
        [ticket.number for ticket in tickets],
        [ticket.title for ticket in tickets],
        [ticket.description for ticket in tickets],
        [PRIORITY_IDS[ticket.priority] for ticket in tickets],
        [ticket.external_id for ticket in tickets],
        [_fields(ticket.fields) for ticket in tickets],
        events[0].type,
        events[0].traceparent,
        [event.shard for event in events],
        [event.event_id for event in events],
        [event.data for event in events],
    )


async def select_ticket(
    connection: asyncpg.Connection, organization_id: uuid.UUID, ticket_id: uuid.UUID, *, lock: bool = False
) -> Ticket | None:
    row = await connection.fetchrow(LOCK_TICKET if lock else SELECT_TICKET, organization_id, ticket_id)
    return _ticket(row) if row else None


async def update_ticket(connection: asyncpg.Connection, ticket: Ticket, event: OutboxRow) -> None:
    await connection.execute(
        UPDATE_TICKET,
        ticket.organization_id,
        ticket.id,
        ticket.title,
        ticket.description,
        STATUS_IDS[ticket.status],
        PRIORITY_IDS[ticket.priority],
        ticket.assigned_to,
        ticket.version,
        ticket.updated_at,
        event.shard,
        event.event_id,
        event.type,
        event.data,
        event.traceparent,
    )


async def insert_comment(connection: asyncpg.Connection, ticket: Ticket, comment: Comment, event: OutboxRow) -> None:
    await connection.execute(
        INSERT_COMMENT,
        ticket.organization_id,
        ticket.id,
        ticket.version,
        ticket.updated_at,
        comment.id,
        comment.author_id,
        comment.body,
        event.shard,
        event.event_id,
        event.type,
        event.data,
        event.traceparent,
    )


async def select_comments(
    connection: asyncpg.Connection, organization_id: uuid.UUID, ticket_id: uuid.UUID, limit: int
) -> list[Comment]:
    rows = await connection.fetch(SELECT_COMMENTS, organization_id, ticket_id, limit)
    return [Comment(**dict(row)) for row in rows]


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
    return [TicketSummary(**_named(row)) for row in rows]


async def new_id_and_time(connection: asyncpg.Connection) -> asyncpg.Record:
    return await connection.fetchrow(NEW_ID_AND_TIME)


def new_ticket(row: asyncpg.Record, organization_id: uuid.UUID, user_id: uuid.UUID, new: NewTicket) -> Ticket:
    """The ticket that `NEXT_NUMBER`'s row and a request make."""
    return Ticket(
        id=row["ticket_id"],
        number=row["number"],
        organization_id=organization_id,
        title=new.title,
        description=new.description,
        status=Status.OPEN,
        priority=new.priority,
        user_id=user_id,
        assigned_to=None,
        external_id=new.external_id,
        fields=new.fields,
        version=1,
        created_at=row["at"],
        updated_at=row["at"],
    )


def _ticket(row: asyncpg.Record) -> Ticket:
    values = _named(row)
    values["fields"] = msgspec.json.decode(values["fields"])
    return Ticket(**values)


def _named(row: asyncpg.Record) -> dict[str, Any]:
    values = dict(row)
    values["status"] = _STATUSES[values.pop("status_id")]
    values["priority"] = _PRIORITIES[values.pop("priority_id")]
    return values


def _fields(fields: dict[str, str]) -> str:
    return msgspec.json.encode(fields).decode()

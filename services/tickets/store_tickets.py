"""SQL of one ticket at a time: create, read, change."""

import uuid
from typing import Any

import asyncpg
import msgspec

from libs.common.models import NewTicket, Priority, Status, Ticket
from services.tickets.outbox import OutboxRow

STATUS_IDS = {status: number for number, status in enumerate(Status, start=1)}
PRIORITY_IDS = {priority: number for number, priority in enumerate(Priority, start=1)}
_STATUSES = {number: status for status, number in STATUS_IDS.items()}
_PRIORITIES = {number: priority for priority, number in PRIORITY_IDS.items()}

COLUMNS = """id, number, organization_id, title, description, status_id, priority_id, user_id, assigned_to,
       external_id, fields, version, created_at, updated_at, first_response_at, solved_at"""


def with_event(change: str, *, version: str, at: str, first: int) -> str:
    """`change`, one or more CTEs on the ticket ($1, $2), together with its line of history and its event.

    `first` is the number of the first parameter of `event_arguments`. The ticket's row is locked by an earlier
    statement (or made by this one), so the position in the outbox is drawn after the lock.
    """
    event_id, event_type, actor_id, kind, name, changes, shard, data, traceparent = (
        f"${number}" for number in range(first, first + 9)
    )
    return f"""
WITH {change}, history AS (
    INSERT INTO ticket_history (organization_id, ticket_id, version, at, event_id, type, actor_id, actor_kind,
                                actor_name, changes)
    VALUES ($1, $2, {version}, {at}, {event_id}, {event_type}, {actor_id}, {kind}, {name}, {changes})
)
INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, traceparent, created_at)
VALUES ($1, $2, {version}, {shard}, {event_id}, {event_type}, {data}, {traceparent}, {at})"""


# Draw the next number of the organization, and the ids and the time of what will bear it. The row lock makes numbers
# gapless and in order of creation; it is held until COMMIT, by this tenant's creations alone.
NEXT_NUMBER = """
UPDATE organizations SET last_ticket_number = last_ticket_number + 1 WHERE id = $1
RETURNING last_ticket_number AS number, uuidv7() AS ticket_id, uuidv7() AS event_id, clock_timestamp() AS at"""

INSERT_TICKET = with_event(
    """ticket AS (
    INSERT INTO tickets (organization_id, id, number, title, description, status_id, priority_id, user_id,
                         external_id, fields, version, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)
)""",
    version="$11",
    at="$12",
    first=13,
)

SELECT_TICKET = f"SELECT {COLUMNS} FROM tickets WHERE organization_id = $1 AND id = $2"

# The same, locked: what an update reads stays true until its COMMIT.
LOCK_TICKET = SELECT_TICKET + " FOR NO KEY UPDATE"

UPDATE_TICKET = with_event(
    """ticket AS (
    UPDATE tickets SET title = $3, description = $4, status_id = $5, priority_id = $6, assigned_to = $7,
                       solved_at = $8, version = $9, updated_at = $10
    WHERE organization_id = $1 AND id = $2
)""",
    version="$9",
    at="$10",
    first=11,
)

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
        fields_json(ticket.fields),
        ticket.version,
        ticket.created_at,
        *event_arguments(event),
    )


async def select_ticket(
    connection: asyncpg.Connection, organization_id: uuid.UUID, ticket_id: uuid.UUID, *, lock: bool = False
) -> Ticket | None:
    row = await connection.fetchrow(LOCK_TICKET if lock else SELECT_TICKET, organization_id, ticket_id)
    return ticket_of(row) if row else None


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
        ticket.solved_at,
        ticket.version,
        ticket.updated_at,
        *event_arguments(event),
    )


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


def event_arguments(event: OutboxRow) -> tuple[Any, ...]:
    """The nine parameters of `with_event`."""
    actor = event.actor
    who = (actor.id, actor.kind, actor.name)
    return (event.event_id, event.type, *who, event.changes, event.shard, event.data, event.traceparent)


def ticket_of(row: asyncpg.Record) -> Ticket:
    values = named(row)
    values["fields"] = msgspec.json.decode(values["fields"])
    return Ticket(**values)


def named(row: asyncpg.Record) -> dict[str, Any]:
    """A row's values with status and priority by name."""
    values = dict(row)
    values["status"] = _STATUSES[values.pop("status_id")]
    values["priority"] = _PRIORITIES[values.pop("priority_id")]
    return values


def fields_json(fields: dict[str, str]) -> str:
    return msgspec.json.encode(fields).decode()

"""SQL of many tickets at once."""

import datetime as dt
import uuid
from collections.abc import Sequence

import asyncpg

from libs.common.models import Ticket
from services.tickets.outbox import OutboxRow
from services.tickets.store_tickets import COLUMNS, PRIORITY_IDS, STATUS_IDS, fields_json, ticket_of

# Hold the organization's numbers, so that nobody else creates meanwhile.
LOCK_NUMBERS = """
SELECT last_ticket_number, clock_timestamp() AS at FROM organizations WHERE id = $1 FOR NO KEY UPDATE"""

# Which of these external ids are known.
KNOWN_EXTERNAL_IDS = """
SELECT external_id, id, number FROM tickets WHERE organization_id = $1 AND external_id = ANY($2)"""

NEW_IDS = "SELECT uuidv7() AS ticket_id, uuidv7() AS event_id FROM generate_series(1, $1)"

# Lock many tickets, always in the order of their ids: batches that overlap wait for one another, and never in a ring.
LOCK_TICKETS = f"""
SELECT {COLUMNS} FROM tickets WHERE organization_id = $1 AND id = ANY($2) ORDER BY id FOR NO KEY UPDATE"""

# Which of these are users of the organization, and stay it until COMMIT.
KNOWN_USERS = "SELECT id FROM users WHERE organization_id = $1 AND id = ANY($2) FOR KEY SHARE"

NEW_EVENT_IDS = "SELECT uuidv7() AS event_id, statement_timestamp() AS at FROM generate_series(1, $1)"

# Change many tickets, locked before, with their histories and events in one statement.
UPDATE_TICKETS = """
WITH ticket AS (
    UPDATE tickets SET title = new.title, description = new.description, status_id = new.status_id,
                       priority_id = new.priority_id, assigned_to = new.assigned_to, solved_at = new.solved_at,
                       version = new.version, updated_at = $2
    FROM unnest($7::uuid[], $8::bigint[], $9::text[], $10::text[], $11::smallint[], $12::smallint[], $13::uuid[],
                $14::timestamptz[])
        AS new (id, version, title, description, status_id, priority_id, assigned_to, solved_at)
    WHERE tickets.organization_id = $1 AND tickets.id = new.id
), history AS (
    INSERT INTO ticket_history (organization_id, ticket_id, version, at, event_id, type, actor_id, actor_kind,
                                actor_name, changes)
    SELECT $1, ticket_id, version, $2, event_id, type, $3, $4, $5, changes::jsonb
    FROM unnest($7::uuid[], $8::bigint[], $15::uuid[], $16::text[], $17::text[])
        AS new (ticket_id, version, event_id, type, changes)
)
INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, traceparent, created_at)
SELECT $1, ticket_id, version, shard, event_id, type, data, $6, $2
FROM unnest($7::uuid[], $8::bigint[], $18::smallint[], $15::uuid[], $16::text[], $19::bytea[])
    AS new (ticket_id, version, shard, event_id, type, data)"""

# Insert many tickets with their histories and events and move the organization's counter on, in one statement.
INSERT_TICKETS = """
WITH counter AS (
    UPDATE organizations SET last_ticket_number = $2 WHERE id = $1
), ticket AS (
    INSERT INTO tickets (organization_id, id, number, title, description, status_id, priority_id, user_id,
                         external_id, fields, version, created_at, updated_at)
    SELECT $1, id, number, title, description, $3, priority_id, $4, external_id, fields::jsonb, 1, $5, $5
    FROM unnest($6::uuid[], $7::bigint[], $8::text[], $9::text[], $10::smallint[], $11::text[], $12::text[])
        AS new (id, number, title, description, priority_id, external_id, fields)
), history AS (
    INSERT INTO ticket_history (organization_id, ticket_id, version, at, event_id, type, actor_id, actor_kind,
                                actor_name, changes)
    SELECT $1, ticket_id, 1, $5, event_id, $13, $18, $19, $20, '{}'
    FROM unnest($6::uuid[], $16::uuid[]) AS new (ticket_id, event_id)
)
INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, traceparent, created_at)
SELECT $1, ticket_id, 1, shard, event_id, $13, data, $14, $5
FROM unnest($6::uuid[], $15::smallint[], $16::uuid[], $17::bytea[]) AS new (ticket_id, shard, event_id, data)"""


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
        [fields_json(ticket.fields) for ticket in tickets],
        events[0].type,
        events[0].traceparent,
        [event.shard for event in events],
        [event.event_id for event in events],
        [event.data for event in events],
        events[0].actor.id,
        events[0].actor.kind,
        events[0].actor.name,
    )


async def lock_tickets(
    connection: asyncpg.Connection, organization_id: uuid.UUID, ticket_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, Ticket]:
    """Those of the tickets that are there, kept from being changed by others until the transaction ends."""
    rows = await connection.fetch(LOCK_TICKETS, organization_id, ticket_ids)
    return {row["id"]: ticket_of(row) for row in rows}


async def known_users(
    connection: asyncpg.Connection, organization_id: uuid.UUID, user_ids: Sequence[uuid.UUID]
) -> set[uuid.UUID]:
    return {row["id"] for row in await connection.fetch(KNOWN_USERS, organization_id, user_ids)}


async def new_event_ids(connection: asyncpg.Connection, count: int) -> tuple[list[uuid.UUID], dt.datetime]:
    """`count` (at least 1) UUIDv7 for events, and the moment of them all."""
    rows = await connection.fetch(NEW_EVENT_IDS, count)
    return [row["event_id"] for row in rows], rows[0]["at"]


async def update_tickets(
    connection: asyncpg.Connection, tickets: Sequence[Ticket], events: Sequence[OutboxRow]
) -> None:
    """Write new versions of tickets of one organization, changed by one actor at one moment."""
    first, actor = tickets[0], events[0].actor
    await connection.execute(
        UPDATE_TICKETS,
        first.organization_id,
        first.updated_at,
        actor.id,
        actor.kind,
        actor.name,
        events[0].traceparent,
        [ticket.id for ticket in tickets],
        [ticket.version for ticket in tickets],
        [ticket.title for ticket in tickets],
        [ticket.description for ticket in tickets],
        [STATUS_IDS[ticket.status] for ticket in tickets],
        [PRIORITY_IDS[ticket.priority] for ticket in tickets],
        [ticket.assigned_to for ticket in tickets],
        [ticket.solved_at for ticket in tickets],
        [event.event_id for event in events],
        [event.type for event in events],
        [event.changes for event in events],
        [event.shard for event in events],
        [event.data for event in events],
    )

"""SQL of many tickets at once."""

import uuid
from collections.abc import Sequence

import asyncpg

from libs.common.models import Ticket
from services.tickets.outbox import OutboxRow
from services.tickets.store_tickets import PRIORITY_IDS, STATUS_IDS, fields_json

# Hold the organization's numbers, so that nobody else creates meanwhile.
LOCK_NUMBERS = """
SELECT last_ticket_number, clock_timestamp() AS at FROM organizations WHERE id = $1 FOR NO KEY UPDATE"""

# Which of these external ids are known.
KNOWN_EXTERNAL_IDS = """
SELECT external_id, id, number FROM tickets WHERE organization_id = $1 AND external_id = ANY($2)"""

NEW_IDS = "SELECT uuidv7() AS ticket_id, uuidv7() AS event_id FROM generate_series(1, $1)"

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

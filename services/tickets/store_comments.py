"""SQL of comments."""

import uuid

import asyncpg

from libs.common.models import Comment, Ticket
from services.tickets.outbox import OutboxRow
from services.tickets.store_tickets import event_arguments, with_event

# A comment, its ticket's new version and the event.
INSERT_COMMENT = with_event(
    """ticket AS (
    UPDATE tickets SET version = $3, updated_at = $4, first_response_at = $5 WHERE organization_id = $1 AND id = $2
), comment AS (
    INSERT INTO comments (organization_id, id, ticket_id, author_id, body, created_at)
    VALUES ($1, $6, $2, $7, $8, $4)
)""",
    version="$3",
    at="$4",
    first=9,
)

SELECT_COMMENTS = """
SELECT id, ticket_id, author_id, body, created_at FROM comments
WHERE organization_id = $1 AND ticket_id = $2 ORDER BY id LIMIT $3"""


async def insert_comment(connection: asyncpg.Connection, ticket: Ticket, comment: Comment, event: OutboxRow) -> None:
    await connection.execute(
        INSERT_COMMENT,
        ticket.organization_id,
        ticket.id,
        ticket.version,
        ticket.updated_at,
        ticket.first_response_at,
        comment.id,
        comment.author_id,
        comment.body,
        *event_arguments(event),
    )


async def select_comments(
    connection: asyncpg.Connection, organization_id: uuid.UUID, ticket_id: uuid.UUID, limit: int
) -> list[Comment]:
    rows = await connection.fetch(SELECT_COMMENTS, organization_id, ticket_id, limit)
    return [Comment(**dict(row)) for row in rows]

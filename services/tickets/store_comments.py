"""SQL of comments."""

import uuid

import asyncpg

from libs.common.models import Comment, Ticket
from services.tickets.cursors import PAGE_LIMIT
from services.tickets.outbox import OutboxRow
from services.tickets.store_tickets import event_arguments, with_event

_FIRST, _LAST = uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)

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

# The first comments of a ticket.
SELECT_COMMENTS = """
SELECT id, ticket_id, author_id, body, created_at FROM comments
WHERE organization_id = $1 AND ticket_id = $2 ORDER BY id LIMIT $3"""

# A page of a ticket's comments after the one with the id $3, oldest first. The constant limit is for the planner,
# which does not know $4 when it plans for every value.
LIST_COMMENTS = f"""
SELECT * FROM (
    SELECT id, ticket_id, author_id, body, created_at FROM comments
    WHERE organization_id = $1 AND ticket_id = $2 AND id > $3 ORDER BY id LIMIT {PAGE_LIMIT + 1}
) AS page LIMIT $4"""

# The same, newest first.
LIST_NEWEST_COMMENTS = LIST_COMMENTS.replace("id > $3 ORDER BY id", "id < $3 ORDER BY id DESC")

TICKET_EXISTS = "SELECT EXISTS (SELECT FROM tickets WHERE organization_id = $1 AND id = $2)"


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


async def page_of_comments(
    connection: asyncpg.Connection,
    organization_id: uuid.UUID,
    ticket_id: uuid.UUID,
    after: uuid.UUID | None,
    limit: int,
    *,
    newest_first: bool,
) -> list[Comment]:
    """At most `limit` (1 to 101) comments after the one with the id `after`."""
    statement, start = (LIST_NEWEST_COMMENTS, _LAST) if newest_first else (LIST_COMMENTS, _FIRST)
    rows = await connection.fetch(statement, organization_id, ticket_id, after or start, limit)
    return [Comment(**dict(row)) for row in rows]


async def ticket_exists(connection: asyncpg.Connection, organization_id: uuid.UUID, ticket_id: uuid.UUID) -> bool:
    return bool(await connection.fetchval(TICKET_EXISTS, organization_id, ticket_id))

"""Comments: a comment is a change of its ticket, so it bears the ticket's next version."""

import enum
import uuid

import asyncpg
import msgspec

from libs.common.consistency import Position, Requirement
from libs.common.events import EventTypes
from libs.common.identity import Principal
from libs.common.models import Comment, CommentPage, NewComment, TicketDocument
from services.tickets import outbox, store_comments, store_tickets
from services.tickets.cursors import read_cursor, write_cursor
from services.tickets.database import Database, Found
from services.tickets.idempotency import Attempt, Reply, once
from services.tickets.tickets import existing_ticket, ticket_not_found

DOCUMENT_COMMENTS = 1000


class Sort(enum.StrEnum):
    """The order of a ticket's comments: their ids are in the order of creation."""

    OLDEST = "created_at"
    NEWEST = "-created_at"


async def add_comment(
    database: Database, principal: Principal, ticket_id: uuid.UUID, new: NewComment, attempt: Attempt | None = None
) -> tuple[Reply, Position]:
    """Add a comment, once for an `attempt`; the reply tells it, the position includes it.

    Raises:
        Problem: `ticket_not_found` (404), and as `once`.
    """

    async def work(connection: asyncpg.Connection) -> Reply:
        ticket = await existing_ticket(connection, principal.organization_id, ticket_id, lock=True)
        stamp = await store_tickets.new_id_and_time(connection)
        first_response = ticket.first_response_at or (stamp["at"] if principal.user_id != ticket.user_id else None)
        ticket = msgspec.structs.replace(
            ticket, version=ticket.version + 1, updated_at=stamp["at"], first_response_at=first_response
        )
        comment = Comment(
            id=stamp["id"],
            ticket_id=ticket_id,
            author_id=principal.user_id,
            body=new.body,
            created_at=stamp["at"],
        )
        event = outbox.row(
            EventTypes.COMMENTED,
            ticket,
            event_id=stamp["event_id"],
            principal=principal,
            comment=comment,
        )
        await store_comments.insert_comment(connection, ticket, comment, event)
        return Reply.of(comment)

    return await once(database, principal, attempt, work)


async def list_comments(
    database: Database,
    organization_id: uuid.UUID,
    ticket_id: uuid.UUID,
    requirement: Requirement,
    *,
    sort: Sort,
    cursor: str | None,
    limit: int,
) -> Found[CommentPage]:
    """A page of at most `limit` (1 to 100) of the ticket's comments.

    Raises:
        Problem: `ticket_not_found` (404), or `invalid_parameter` (400) for a cursor that is none, or one of
            another list.
    """
    of = f"comments {ticket_id} {sort}"
    after = uuid.UUID(bytes=read_cursor(of, cursor, 16)) if cursor is not None else None

    async def work(connection: asyncpg.Connection) -> CommentPage:
        newest_first = sort is Sort.NEWEST
        found = await store_comments.page_of_comments(
            connection, organization_id, ticket_id, after, limit + 1, newest_first=newest_first
        )
        if not found and not await store_comments.ticket_exists(connection, organization_id, ticket_id):
            raise ticket_not_found(ticket_id)
        page = found[:limit]
        return CommentPage(page, write_cursor(of, page[-1].id.bytes) if len(found) > limit else None)

    return await database.read(organization_id, requirement, work)


async def get_document(
    database: Database, organization_id: uuid.UUID, ticket_id: uuid.UUID, requirement: Requirement
) -> Found[TicketDocument]:
    """A ticket with its comments (the first 1,000), both of one snapshot.

    Raises:
        Problem: `ticket_not_found` (404).
    """

    async def work(connection: asyncpg.Connection) -> TicketDocument:
        ticket = await existing_ticket(connection, organization_id, ticket_id)
        comments = await store_comments.select_comments(connection, organization_id, ticket_id, DOCUMENT_COMMENTS)
        return TicketDocument(ticket, comments)

    return await database.read(organization_id, requirement, work)

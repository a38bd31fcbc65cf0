"""Comments: a comment is a change of its ticket, so it bears the ticket's next version."""

import uuid

import asyncpg
import msgspec

from libs.common.consistency import Position, Requirement
from libs.common.events import EventTypes
from libs.common.identity import Principal
from libs.common.models import Comment, CommentList, NewComment, TicketDocument
from services.tickets import outbox, store_comments, store_tickets
from services.tickets.database import Database, Found
from services.tickets.tickets import existing_ticket

COMMENTS_LIMIT = 1000


async def add_comment(
    database: Database, principal: Principal, ticket_id: uuid.UUID, new: NewComment
) -> tuple[Comment, Position]:
    """Add a comment; the position includes it.

    Raises:
        Problem: `ticket_not_found` (404).
    """
    async with database.write(principal.organization_id) as write:
        ticket = await existing_ticket(write.connection, principal.organization_id, ticket_id, lock=True)
        stamp = await store_tickets.new_id_and_time(write.connection)
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
        await store_comments.insert_comment(write.connection, ticket, comment, event)
    return comment, write.position


async def list_comments(
    database: Database, organization_id: uuid.UUID, ticket_id: uuid.UUID, requirement: Requirement
) -> Found[CommentList]:
    """The ticket's comments, oldest first, at most 1,000.

    Raises:
        Problem: `ticket_not_found` (404).
    """

    async def work(connection: asyncpg.Connection) -> CommentList:
        await existing_ticket(connection, organization_id, ticket_id)
        return CommentList(await store_comments.select_comments(connection, organization_id, ticket_id, COMMENTS_LIMIT))

    return await database.read(organization_id, requirement, work)


async def get_document(
    database: Database, organization_id: uuid.UUID, ticket_id: uuid.UUID, requirement: Requirement
) -> Found[TicketDocument]:
    """A ticket with its comments, both of one snapshot.

    Raises:
        Problem: `ticket_not_found` (404).
    """

    async def work(connection: asyncpg.Connection) -> TicketDocument:
        ticket = await existing_ticket(connection, organization_id, ticket_id)
        comments = await store_comments.select_comments(connection, organization_id, ticket_id, COMMENTS_LIMIT)
        return TicketDocument(ticket, comments)

    return await database.read(organization_id, requirement, work)

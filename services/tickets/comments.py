"""Comments: a comment is a change of its ticket, so it bears the ticket's next version."""

import uuid

import msgspec

from libs.common.consistency import Position, Requirement
from libs.common.events import EventTypes
from libs.common.identity import Principal
from libs.common.models import Comment, CommentList, NewComment, TicketDocument
from services.tickets import outbox, store_tickets
from services.tickets.database import Database, Read
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
        ticket = msgspec.structs.replace(ticket, version=ticket.version + 1, updated_at=stamp["at"])
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
            changed=[],
            principal=principal,
            comment=comment,
        )
        await store_tickets.insert_comment(write.connection, ticket, comment, event)
    return comment, write.position


async def list_comments(
    database: Database, organization_id: uuid.UUID, ticket_id: uuid.UUID, requirement: Requirement
) -> tuple[CommentList, Read, Position]:
    """The ticket's comments, oldest first, at most 1,000.

    Raises:
        Problem: `ticket_not_found` (404).
    """
    document, read, consistency = await get_document(database, organization_id, ticket_id, requirement)
    return CommentList(document.comments), read, consistency


async def get_document(
    database: Database, organization_id: uuid.UUID, ticket_id: uuid.UUID, requirement: Requirement
) -> tuple[TicketDocument, Read, Position]:
    """A ticket with its comments, both of one snapshot.

    Raises:
        Problem: `ticket_not_found` (404).
    """
    async with database.read(organization_id, requirement) as read:
        ticket = await existing_ticket(read.connection, organization_id, ticket_id)
        comments = await store_tickets.select_comments(read.connection, organization_id, ticket_id, COMMENTS_LIMIT)
        return TicketDocument(ticket, comments), read, await read.consistency()

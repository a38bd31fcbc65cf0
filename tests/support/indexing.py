"""What tests of the index share: the life of a ticket as events, and a tickets service that knows it."""

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from infra.local.ports import HOST
from libs.common.events import EventTypes, TicketEvent, encode_data
from libs.common.identity import HEADER, Verifier
from libs.common.models import Comment, TicketDocument
from libs.common.service import add_service_defaults, json_response
from tests.support.realtime import ticket_event


def created(organization_id: uuid.UUID, *, title: str = "A ticket", description: str = "") -> TicketEvent:
    return ticket_event(organization_id, uuid.uuid4(), 1, title=title, description=description)


def changed(before: TicketEvent, **fields: object) -> TicketEvent:
    """The event of the next version."""
    ticket = msgspec.structs.replace(before.data.ticket, version=before.version + 1, **fields)
    data = msgspec.structs.replace(before.data, ticket=ticket, changed=sorted(fields), comment=None)
    return msgspec.structs.replace(
        before,
        id=uuid.uuid4(),
        type=EventTypes.UPDATED.name,
        version=ticket.version,
        position=before.position._replace(lsn=before.position.lsn + 1),
        data=data,
        value=encode_data(data),
    )


def commented(before: TicketEvent, body: str) -> TicketEvent:
    event = changed(before)
    comment = Comment(
        id=uuid.uuid4(),
        ticket_id=event.data.ticket.id,
        author_id=uuid.uuid4(),
        body=body,
        created_at=dt.datetime.now(dt.UTC),
    )
    data = msgspec.structs.replace(event.data, comment=comment)
    return msgspec.structs.replace(event, type=EventTypes.COMMENTED.name, data=data, value=encode_data(data))


def document_after(life: Sequence[TicketEvent]) -> TicketDocument:
    """What the tickets service answers once all of `life`, a ticket's events from the first on, has happened."""
    return TicketDocument(life[-1].data.ticket, [event.data.comment for event in life if event.data.comment])


class TicketsOwner:
    """The tickets service as far as the index asks it; it cannot run as itself with arbitrary histories."""

    def __init__(self, trusted_keys: str) -> None:
        self._verifier = Verifier(trusted_keys, audience="tickets")
        self.documents: dict[uuid.UUID, TicketDocument] = {}
        self.broken = False
        self.asked: list[uuid.UUID] = []
        self.url = ""

    def add(self, life: Sequence[TicketEvent]) -> None:
        self.documents[life[-1].data.ticket.id] = document_after(life)

    async def answer(self, request: web.Request) -> web.Response:
        self._verifier.service(request.headers.get(HEADER))
        ticket_id = uuid.UUID(request.match_info["ticket_id"])
        self.asked.append(ticket_id)
        if self.broken:
            return web.Response(status=503)
        document = self.documents.get(ticket_id)
        if document is None or str(document.ticket.organization_id) != request.query["organization_id"]:
            return json_response({"type": "", "title": "", "status": 404, "code": "ticket_not_found"}, status=404)
        return json_response(document)


@asynccontextmanager
async def serving_tickets(trusted_keys: str) -> AsyncIterator[TicketsOwner]:
    owner = TicketsOwner(trusted_keys)
    app = web.Application()
    add_service_defaults(app)
    app.router.add_get("/internal/tickets/{ticket_id}", owner.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        owner.url = f"http://{HOST}:{runner.addresses[0][1]}"
        yield owner
    finally:
        await runner.cleanup()

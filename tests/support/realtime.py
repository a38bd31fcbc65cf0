"""What tests of real time share: events in Kafka, realtime tokens, a Socket.IO client that remembers."""

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import socketio

from infra.local.stack import Stack
from libs.common.consistency import Position
from libs.common.events import TOPIC, Actor, EventTypes, TicketEvent, TicketEventData, encode_data, headers
from libs.common.identity import Principal, Signer
from libs.common.kafka import producer
from libs.common.models import Priority, Role, Status, Ticket


def principal(organization_id: uuid.UUID, *, credential_id: str | None = None) -> Principal:
    return Principal(
        organization_id=organization_id,
        user_id=uuid.uuid4(),
        name="Agent",
        role=Role.AGENT,
        credential="session",
        credential_id=credential_id or uuid.uuid4().hex,
    )


def ticket_event(
    organization_id: uuid.UUID, ticket_id: uuid.UUID, version: int, *, title: str = "A ticket", description: str = ""
) -> TicketEvent:
    now = dt.datetime.now(dt.UTC)
    user_id = uuid.uuid4()
    ticket = Ticket(
        id=ticket_id,
        number=1,
        organization_id=organization_id,
        title=title,
        description=description,
        status=Status.OPEN,
        priority=Priority.NORMAL,
        user_id=user_id,
        assigned_to=None,
        external_id=None,
        fields={},
        version=version,
        created_at=now,
        updated_at=now,
    )
    data = TicketEventData(ticket=ticket, changed=["title"], actor=Actor(user_id, "session", "Agent"))
    return TicketEvent(
        id=uuid.uuid4(),
        type=(EventTypes.CREATED if version == 1 else EventTypes.UPDATED).name,
        time=now,
        organization_id=organization_id,
        version=version,
        position=Position(1, version),
        traceparent=None,
        data=data,
        value=encode_data(data),
    )


async def publish(stack: Stack, events: Sequence[TicketEvent]) -> None:
    """Put events into the ticket topic, in their order."""
    sender = producer(stack.kafka_bootstrap_servers)
    await sender.start()
    try:
        sent = [
            await sender.send(
                TOPIC,
                key=str(event.data.ticket.id).encode(),
                value=event.value,
                headers=headers(
                    event_id=event.id,
                    event_type=event.type,
                    time=event.time,
                    ticket_id=event.data.ticket.id,
                    organization_id=event.organization_id,
                    version=event.version,
                    position=event.position,
                    traceparent=None,
                ),
            )
            for event in events
        ]
        await asyncio.gather(*sent)
    finally:
        await sender.stop()


class Listener:
    """A Socket.IO client and everything it was told."""

    def __init__(self) -> None:
        self.client = socketio.AsyncClient(reconnection_delay=0.1, reconnection_delay_max=0.5)
        self.batches: list[list[dict[str, Any]]] = []
        self.disconnected = asyncio.Event()
        self.refusal: Any = None
        self.client.on("notifications", self.batches.append)
        self.client.on("disconnect", lambda *_reason: self.disconnected.set())
        self.client.on("connect_error", self._on_connect_error)

    def _on_connect_error(self, data: Any) -> None:
        self.refusal = data

    @property
    def items(self) -> list[dict[str, Any]]:
        return [item for batch in self.batches for item in batch]

    @property
    def event_ids(self) -> list[str]:
        return [item["id"] for item in self.items]

    async def subscribe(self, payload: Any = None) -> dict[str, Any]:
        answer: dict[str, Any] = await self.client.call("subscribe", payload or {"room": "organization"}, timeout=10)
        return answer


@asynccontextmanager
async def listening(
    url: str, token: str, *, transports: Sequence[str] = ("websocket",), subscribe: bool = True, **options: Any
) -> AsyncIterator[Listener]:
    """A connected client, in its organization's room."""
    listener = Listener()
    await listener.client.connect(url, auth={"token": token}, transports=list(transports), **options)
    try:
        if subscribe:
            assert await listener.subscribe() == {"ok": True, "room": "organization"}
        yield listener
    finally:
        await listener.client.shutdown()


def realtime_token(stack: Stack, who: Principal) -> str:
    return Signer(stack.credentials.signing_key("gateway")).realtime_token(who)[0]


async def until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Wait until `condition` holds; fails with TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)

"""Socket.IO clients against a running notifier."""

import uuid

import pytest

from infra.local.stack import Stack
from tests.support.processes import TestedService
from tests.support.realtime import listening, principal, publish, realtime_token, ticket_event, until


@pytest.mark.parametrize("transports", [("websocket",), ("polling",), ("polling", "websocket")])
async def test_a_subscribed_client_gets_events_in_arrays(
    stack: Stack, notifier: TestedService, transports: tuple[str, ...]
) -> None:
    organization_id, ticket_id = uuid.uuid4(), uuid.uuid4()
    events = [ticket_event(organization_id, ticket_id, version, title=f"Ünïcode {version}") for version in (1, 2, 3)]
    token = realtime_token(stack, principal(organization_id))
    async with listening(notifier.url, token, transports=transports) as listener:
        await publish(stack, events)
        await until(lambda: len(listener.items) >= 3)
    assert listener.event_ids == [str(event.id) for event in events]
    item = listener.items[0]
    assert set(item) == {"offset", "id", "type", "time", "version", "consistency", "ticket", "changed", "actor"}
    assert item["ticket"]["title"] == "Ünïcode 1"
    assert item["type"] == "ticket.created.v1"
    assert item["consistency"] == events[0].position.token()
    assert len({item["offset"].partition(":")[0] for item in listener.items}) == 1

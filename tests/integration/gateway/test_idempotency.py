"""Idempotency-Key through two real gateways."""

import asyncio
import uuid
from typing import Any

import pytest

from tests.support.desk import Desk, Reply, problem

CREATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "ticket": ("/api/tickets", {"title": "Once"}),
    "bulk": ("/api/tickets/bulk", {"tickets": [{"title": "One"}, {"title": ""}]}),
    "comment": ("/api/tickets/{ticket_id}/comments", {"body": "Once"}),
    "key": ("/api/keys", {"name": "Once"}),
}


async def post(desk: Desk, path: str, body: Any, key: str | bytes, *, gateway: int = 0) -> Reply:
    return await desk.ask("POST", path, body, {"Idempotency-Key": key}, who=desk.acme, gateway=gateway)


@pytest.mark.parametrize("creation", CREATIONS)
async def test_a_retry_at_another_gateway_gets_the_same_answer(desk: Desk, creation: str) -> None:
    path, body = CREATIONS[creation]
    ticket = await desk.ask("POST", "/api/tickets", {"title": "A ticket"}, who=desk.acme)
    path = path.format(ticket_id=ticket.json()["id"])
    key = uuid.uuid4().hex
    first = await post(desk, path, body, key)
    again = await post(desk, path, body, key, gateway=1)
    assert first.status in {200, 201}
    assert (again.status, again.body) == (first.status, first.body)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    for name in ("location", "etag", "content-type"):
        assert again.headers.get(name) == first.headers.get(name)


async def test_a_key_that_comes_with_another_body_is_refused(desk: Desk) -> None:
    key = uuid.uuid4().hex
    await post(desk, "/api/tickets", {"title": "One"}, key)
    other = await post(desk, "/api/tickets", {"title": "Two"}, key, gateway=1)
    assert problem(other) == (422, "idempotency_key_reused")


async def test_of_retries_at_once_through_both_gateways_one_creates(desk: Desk) -> None:
    key = uuid.uuid4().hex
    replies = await asyncio.gather(
        *(post(desk, "/api/tickets", {"title": "Once"}, key, gateway=n % 2) for n in range(50))
    )
    done = [reply for reply in replies if reply.status == 201]
    assert len({reply.body for reply in done}) == 1
    for reply in replies:
        if reply not in done:
            assert problem(reply) == (409, "idempotency_key_in_use")
            assert reply.headers["retry-after"] == "1"


@pytest.mark.parametrize("key", ["", "two words", "\u00fc".encode(), "x" * 256])
async def test_a_key_that_is_not_visible_ascii_is_refused(desk: Desk, key: str | bytes) -> None:
    assert problem(await post(desk, "/api/tickets", {"title": "x"}, key)) == (400, "invalid_parameter")

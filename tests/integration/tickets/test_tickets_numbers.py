"""Ticket numbers: gapless and in order of creation within an organization, and no organization waits for another."""

import asyncio
import random
from collections.abc import Callable

from libs.common.identity import Principal
from tests.support.tickets import Answer, TicketsClient, TicketsDatabase, eventually, locked, waiting_for_locks

LOCK_NUMBERS = "SELECT FROM organizations WHERE id = $1 FOR UPDATE"
NUMBERS = "SELECT number, created_at FROM tickets WHERE organization_id = $1 ORDER BY number"
LAST = "SELECT last_ticket_number FROM organizations WHERE id = $1"
POOL = 10  # TICKETS_POOL_MAXIMUM of the service under test


async def test_numbers_are_gapless_and_in_order_of_creation_however_tickets_are_created(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    """Single and bulk creations at once, among them such that are refused, retried and partly known."""
    organization_id = client.principal.organization_id
    await client.create(external_id="taken")
    chance = random.Random(11)

    async def create(turn: int) -> list[Answer]:
        kind = chance.choice(("single", "refused", "invalid", "bulk", "retried"))
        if kind == "bulk":
            rows = [{"title": "b"}, {"title": ""}, {"title": "b", "external_id": "taken"}, {"title": "b"}]
            return [await client.request("POST", "/api/tickets/bulk", json={"tickets": rows})]
        body = {
            "single": {"title": "s"},
            "refused": {"title": "r", "external_id": "taken"},
            "invalid": {"title": ""},
            "retried": {"title": "i"},
        }[kind]
        headers = {"Idempotency-Key": f"key-{turn}"} if kind == "retried" else {}
        calls = [
            client.request("POST", "/api/tickets", json=body, headers=headers)
            for _ in range(3 if kind == "retried" else 1)
        ]
        return list(await asyncio.gather(*calls))

    answers = [answer for some in await asyncio.gather(*(create(turn) for turn in range(150))) for answer in some]
    assert {answer.status for answer in answers} <= {200, 201, 409, 422}
    rows = await desk.superuser.fetch(NUMBERS, organization_id)
    assert len(rows) > 50
    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1))
    assert await desk.superuser.fetchval(LAST, organization_id) == len(rows)
    moments = [row["created_at"] for row in rows]
    assert moments == sorted(moments)


async def test_an_organization_whose_creations_wait_keeps_no_other_waiting(
    client: TicketsClient, desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient]
) -> None:
    other = client_of((await desk.organization())[0])
    async with locked(desk, LOCK_NUMBERS, client.principal.organization_id):
        waiting = [asyncio.create_task(client.create("Waits")) for _ in range(POOL * 3)]

        async def all_wait() -> bool:
            return await waiting_for_locks(desk) == POOL // 2

        await eventually(all_wait)
        for number in range(1, 31):
            assert (await other.create("Does not")).body["number"] == number
        assert not any(task.done() for task in waiting)
    assert sorted([(await task).body["number"] for task in waiting]) == list(range(1, len(waiting) + 1))

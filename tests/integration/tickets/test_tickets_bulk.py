"""Bulk updates: each row judged by its own version, all of a batch in one transaction, in a real PostgreSQL."""

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from libs.common.identity import Principal
from libs.common.models import BULK_ROWS
from tests.support.tickets import (
    Answer,
    TicketsClient,
    TicketsDatabase,
    eventually,
    locked,
    waiting_for_locks,
)

EVENTS = (
    "SELECT ticket_id, version, type, data, shard, event_id FROM outbox WHERE ticket_id = ANY($1) ORDER BY position"
)
HISTORY = """
SELECT ticket_id, version, type, changes, event_id, at, actor_id FROM ticket_history
WHERE ticket_id = ANY($1) AND version > 1"""
TITLES = "SELECT title FROM tickets WHERE id = ANY($1)"
LOCK_TICKET = "SELECT FROM tickets WHERE id = $1 FOR UPDATE"


async def tickets(client: TicketsClient, count: int) -> list[dict[str, Any]]:
    """New tickets as they are, in the order of their numbers."""
    body = {"tickets": [{"title": f"Ticket {n}"} for n in range(count)]}
    answer = await client.request("POST", "/api/tickets/bulk", json=body)
    assert answer.status == 200
    paths = [f"/api/tickets/{result['id']}" for result in answer.body["results"]]
    return [(await client.request("GET", path)).body for path in paths]


async def update(client: TicketsClient, rows: Sequence[Any]) -> Answer:
    return await client.request("PATCH", "/api/tickets/bulk", json={"tickets": rows})


async def read(client: TicketsClient, ticket: dict[str, Any]) -> Any:
    return (await client.request("GET", f"/api/tickets/{ticket['id']}")).body


def fates(answer: Answer) -> list[tuple[str, str | None]]:
    assert answer.status == 200, answer
    results = answer.body["results"]
    assert [result["index"] for result in results] == list(range(len(results)))
    return [(result["status"], (result["problem"] or {}).get("code")) for result in results]


def ids(found: Sequence[dict[str, Any]]) -> list[uuid.UUID]:
    return [uuid.UUID(ticket["id"]) for ticket in found]


async def test_each_row_has_its_fate(
    client: TicketsClient, desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient]
) -> None:
    (stranger,) = await desk.organization()
    foreign = (await client_of(stranger).create()).body
    made = await tickets(client, 7)
    me = str(client.principal.user_id)
    before = await desk.counts()
    rows = [
        {"id": made[0]["id"], "version": 1, "status": "solved", "assigned_to": me},
        {"id": made[1]["id"], "version": 1, "title": "Ticket 1"},
        {"id": made[2]["id"], "version": 7, "title": "x"},
        {"id": made[3]["id"], "title": "x"},
        {"id": foreign["id"], "version": 1, "title": "x"},
        {"id": made[4]["id"], "version": 1, "assigned_to": str(stranger.user_id)},
        {"id": made[0]["id"], "version": 1, "title": "again"},
        {"id": made[5]["id"], "version": 1, "title": ""},
        {"id": "1", "version": 1},
        {"id": made[5]["id"], "version": 0, "title": "x"},
        {"id": made[5]["id"], "version": 1, "number": 3},
        "no object",
        {"id": made[6]["id"], "version": 1, "priority": "high"},
    ]
    answer = await update(client, rows)
    assert fates(answer) == [
        ("updated", None),
        ("unchanged", None),
        ("refused", "version_mismatch"),
        ("refused", "precondition_required"),
        ("refused", "ticket_not_found"),
        ("refused", "validation_failed"),
        *([("refused", "validation_failed")] * 6),
        ("updated", None),
    ]
    results = answer.body["results"]
    assert [(results[n]["id"], results[n]["version"]) for n in (0, 1)] == [(made[0]["id"], 2), (made[1]["id"], 1)]
    assert (results[2]["problem"]["current_version"], results[2]["id"]) == (1, made[2]["id"])
    assert results[4]["problem"]["detail"] == f"There is no ticket {foreign['id']} in the organization."
    assert [results[n]["problem"]["errors"][0]["pointer"] for n in (5, 6, 7)] == ["/assigned_to", "/id", "/title"]
    more = {name: before[name] + 2 for name in ("outbox", "ticket_history")}
    assert await desk.counts() == before | more
    for index in (1, 2, 3, 4, 5):
        assert await read(client, made[index]) == made[index]


async def test_an_updated_ticket_has_its_event_and_its_line_of_history(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    made = await tickets(client, 3)
    me = str(client.principal.user_id)
    wanted: list[dict[str, Any]] = [
        {"status": "closed", "title": "Done"},
        {"assigned_to": me, "priority": "urgent"},
        {"description": "More"},
    ]
    rows = [{"id": ticket["id"], "version": 1, **changes} for ticket, changes in zip(made, wanted, strict=True)]
    assert fates(await update(client, list(reversed(rows)))) == [("updated", None)] * 3
    after = [await read(client, ticket) for ticket in made]
    at = after[0]["updated_at"]
    assert after == [
        ticket | changes | {"version": 2, "updated_at": at, "solved_at": at if "status" in changes else None}
        for ticket, changes in zip(made, wanted, strict=True)
    ]
    events = {row["ticket_id"]: row for row in await desk.superuser.fetch(EVENTS, ids(made)) if row["version"] == 2}
    history = {row["ticket_id"]: row for row in await desk.superuser.fetch(HISTORY, ids(made))}
    types = ["ticket.status_changed.v1", "ticket.assigned.v1", "ticket.updated.v1"]
    for ticket, changes, event_type in zip(after, wanted, types, strict=True):
        event, line = events[uuid.UUID(ticket["id"])], history[uuid.UUID(ticket["id"])]
        data = msgspec.json.decode(event["data"])
        assert (event["type"], event["shard"]) == (event_type, uuid.UUID(ticket["id"]).int % 64)
        assert data["ticket"] == ticket
        assert sorted(data["changed"]) == sorted(changes)
        assert (line["type"], line["event_id"], line["version"]) == (event_type, event["event_id"], 2)
        assert {name: new for name, (_old, new) in msgspec.json.decode(line["changes"]).items()} == changes
        assert line["actor_id"] == client.principal.user_id


async def test_a_ticket_that_is_opened_again_is_not_solved_any_more(client: TicketsClient) -> None:
    (ticket,) = await tickets(client, 1)
    for version, status in enumerate(("solved", "closed", "open"), start=1):
        assert fates(await update(client, [{"id": ticket["id"], "version": version, "status": status}]))
        found = await read(client, ticket)
        if status == "solved":
            solved_at = found["solved_at"]
            assert solved_at == found["updated_at"]
        else:
            assert found["solved_at"] == (solved_at if status == "closed" else None)


async def test_a_batch_that_is_sent_again_changes_nothing_twice(client: TicketsClient) -> None:
    made = await tickets(client, 4)
    rows = [{"id": ticket["id"], "version": 1, "title": "Changed"} for ticket in made]
    assert fates(await update(client, rows)) == [("updated", None)] * 4
    again = await update(client, rows)
    assert fates(again) == [("refused", "version_mismatch")] * 4
    assert {result["problem"]["current_version"] for result in again.body["results"]} == {2}
    assert fates(await update(client, [row | {"version": 2} for row in rows])) == [("unchanged", None)] * 4


async def test_a_batch_is_seen_whole_or_not_at_all(client: TicketsClient, desk: TicketsDatabase) -> None:
    made = await tickets(client, 5)
    last = max(ids(made))
    async with locked(desk, LOCK_TICKET, last):
        rows = [{"id": ticket["id"], "version": 1, "title": "Together"} for ticket in made]
        batch = asyncio.create_task(update(client, rows))
        await eventually(lambda: waiting_for_locks(desk))
        titles = {row["title"] for row in await desk.superuser.fetch(TITLES, ids(made))}
        assert "Together" not in titles
    assert fates(await batch) == [("updated", None)] * 5
    assert {row["title"] for row in await desk.superuser.fetch(TITLES, ids(made))} == {"Together"}


async def test_batches_that_overlap_wait_for_one_another_and_never_in_a_ring(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    """Eight writers, each naming the same tickets in an order of its own: no deadlock, no lost update."""
    made = await tickets(client, 30)
    known = {ticket["id"]: 1 for ticket in made}
    updated = dict.fromkeys(known, 0)
    chance = random.Random(7)

    async def writer(name: int) -> None:
        for turn in range(12):
            chosen = chance.sample(sorted(known), 20)
            rows = [{"id": key, "version": known[key], "title": f"{name}/{turn}"} for key in chosen]
            answer = await update(client, rows)
            assert answer.status == 200, answer
            for result in answer.body["results"]:
                if result["status"] == "updated":
                    updated[result["id"]] += 1
                    known[result["id"]] = max(known[result["id"]], result["version"])
                else:
                    assert result["problem"]["code"] == "version_mismatch"
                    known[result["id"]] = max(known[result["id"]], result["problem"]["current_version"])

    await asyncio.gather(*(writer(name) for name in range(8)))
    assert sum(updated.values()) > 12 * 20
    for ticket in made:
        assert (await read(client, ticket))["version"] == 1 + updated[ticket["id"]]
    versions: dict[uuid.UUID, list[int]] = {}
    for row in await desk.superuser.fetch(EVENTS, ids(made)):
        versions.setdefault(row["ticket_id"], []).append(row["version"])
    assert versions == {uuid.UUID(key): list(range(1, count + 2)) for key, count in updated.items()}


async def test_a_row_waits_for_a_change_under_way_and_is_judged_by_what_that_left(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    one, two = await tickets(client, 2)
    async with locked(desk, LOCK_TICKET, uuid.UUID(one["id"])):
        single = asyncio.create_task(client.update(one["id"], 1, title="Single"))
        await eventually(lambda: waiting_for_locks(desk))
        batch = asyncio.create_task(
            update(client, [{"id": ticket["id"], "version": 1, "title": "Batch"} for ticket in (one, two)])
        )

        async def both_wait() -> bool:
            return await waiting_for_locks(desk) == 2

        await eventually(both_wait)
    answers = (await single).status, fates(await batch)
    assert answers in (
        (200, [("refused", "version_mismatch"), ("updated", None)]),
        (412, [("updated", None), ("updated", None)]),
    )


async def test_a_batch_has_1_to_500_rows(client: TicketsClient) -> None:
    made = await tickets(client, BULK_ROWS)
    rows = [{"id": ticket["id"], "version": 1, "status": "pending"} for ticket in made]
    for wrong in ([], [*rows, rows[0]]):
        answer = await update(client, wrong)
        assert (answer.status, answer.code) == (422, "validation_failed")
    assert fates(await update(client, rows)) == [("updated", None)] * BULK_ROWS

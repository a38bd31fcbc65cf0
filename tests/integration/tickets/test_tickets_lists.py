"""Lists through the real service: filters, orders and pages, beside a list made in Python; and while others write."""

import asyncio
import itertools
import random
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from libs.common.consistency import HEADER
from libs.common.identity import Principal
from libs.common.models import Priority, Role, Status
from services.tickets.store_tickets import PRIORITY_IDS, STATUS_IDS
from tests.support.many_tickets import ManyTickets, fill
from tests.support.tickets import TicketsClient, TicketsDatabase, eventually

TICKETS = 400
SORTS = ("created_at", "-created_at", "updated_at", "-updated_at")
# More tickets than a page has share a moment, as those of a bulk creation do.
TIES = """
UPDATE tickets SET created_at = date_trunc('month', created_at), updated_at = date_trunc('month', updated_at),
                   assigned_to = CASE WHEN number % 3 = 0 THEN $2 WHEN number % 3 = 1 THEN assigned_to END
WHERE organization_id = $1"""
ROWS = "SELECT * FROM tickets WHERE organization_id = $1"
STATUSES = {number: status for status, number in STATUS_IDS.items()}
PRIORITIES = {number: priority for priority, number in PRIORITY_IDS.items()}


class Filled(NamedTuple):
    client: TicketsClient
    many: ManyTickets
    rows: list[dict[str, Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def filled(desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient]) -> Filled:
    """An organization with 400 tickets of few moments, and what stands in its table."""
    (principal,) = await desk.organization()
    many = await fill(desk.superuser, principal.organization_id, TICKETS)
    await desk.superuser.execute(TIES, many.organization_id, many.agent(1))
    rows = [dict(row) for row in await desk.superuser.fetch(ROWS, many.organization_id)]
    client = client_of(principal)
    # Its first answer tells a token that includes the rows above; it is sent with every request from then on.
    answer = await client.request("GET", "/api/tickets", headers={"Relaydesk-Read-Primary": "1"})
    assert answer.status == 200
    return Filled(client, many, rows)


async def pages(client: TicketsClient, path: str = "/api/tickets", **query: str) -> AsyncIterator[list[dict[str, Any]]]:
    """The pages of a list, by the cursors."""
    (noun,) = {"tickets", "comments"} & {path.rpartition("/")[2]}
    while True:
        answer = await client.request("GET", path, params=query)
        assert answer.status == 200, answer
        yield answer.body[noun]
        if answer.body["next_cursor"] is None:
            return
        query["cursor"] = answer.body["next_cursor"]


async def listed(client: TicketsClient, path: str = "/api/tickets", **query: str) -> list[dict[str, Any]]:
    return [row async for page in pages(client, path, **query) for row in page]


def queries(many: ManyTickets) -> list[dict[str, str]]:
    """Every kind of filter, with values that have many tickets, few and none."""
    statuses = [{}, {"status": "closed"}, {"status": "open,solved"}, {"status": "open,pending,solved,closed"}]
    priorities = [{}, {"priority": "urgent"}, {"priority": "low,high"}]
    assignees = [{}, *({"assigned_to": str(one)} for one in (many.agent(1), many.agent(7), uuid.uuid4(), "none"))]
    users = [{}, *({"user_id": str(one)} for one in (many.importer, many.requester(5)))]
    return [
        status | priority | assignee | user
        for status, priority, assignee, user in itertools.product(statuses, priorities, assignees, users)
    ]


def expected(rows: list[dict[str, Any]], query: dict[str, str], sort: str) -> list[int]:
    """The numbers of the tickets that a list shows, by a plain filter and a plain sort."""
    found = [
        row
        for row in rows
        if ("status" not in query or STATUSES[row["status_id"]] in query["status"].split(","))
        and ("priority" not in query or PRIORITIES[row["priority_id"]] in query["priority"].split(","))
        and ("assigned_to" not in query or str(row["assigned_to"] or "none") == query["assigned_to"])
        and ("user_id" not in query or str(row["user_id"]) == query["user_id"])
    ]
    column = sort.removeprefix("-")
    found.sort(key=lambda row: (row[column], row["id"]), reverse=sort.startswith("-"))
    return [row["number"] for row in found]


@pytest.mark.parametrize("sort", SORTS)
async def test_every_filter_in_every_order_shows_what_a_plain_list_shows(filled: Filled, sort: str) -> None:
    rng = random.Random(sort)
    shown = 0
    for query in queries(filled.many):
        numbers = expected(filled.rows, query, sort)
        limit = str(rng.choice([7, 30, 100]) if len(numbers) < 100 else 100)
        got = await listed(filled.client, sort=sort, limit=limit, **query)
        assert [ticket["number"] for ticket in got] == numbers, (sort, query, limit)
        shown += len(got)
    assert shown > 5 * TICKETS


async def test_pages_of_one_ticket_each_show_every_ticket_once(filled: Filled) -> None:
    query = {"status": "open,pending,solved"}
    for sort in SORTS:
        got = [page async for page in pages(filled.client, sort=sort, limit="1", **query)]
        assert [ticket["number"] for page in got for ticket in page] == expected(filled.rows, query, sort)
        assert all(len(page) == 1 for page in got)


async def test_a_ticket_in_a_list_is_the_ticket(filled: Filled) -> None:
    (shown,) = (await filled.client.request("GET", "/api/tickets", params={"limit": "1"})).body["tickets"]
    ticket = (await filled.client.request("GET", f"/api/tickets/{shown['id']}")).body
    assert shown == {name: ticket[name] for name in shown}
    assert shown.keys() == {
        *("id", "number", "title", "status", "priority", "user_id", "assigned_to"),
        *("version", "created_at", "updated_at"),
    }


async def test_a_cursor_serves_its_own_list_only(filled: Filled) -> None:
    first = await filled.client.request("GET", "/api/tickets", params={"limit": "2", "status": "closed"})
    cursor = first.body["next_cursor"]
    for query in (
        *({"status": "closed", "sort": sort} for sort in SORTS if sort != "-created_at"),
        {},
        {"status": "solved"},
        {"status": "closed,open"},
        {"status": "closed", "priority": "low"},
        {"status": "closed", "assigned_to": "none"},
        {"status": "closed", "assigned_to": str(filled.many.agent(1))},
        {"status": "closed", "user_id": str(filled.many.importer)},
    ):
        answer = await filled.client.request("GET", "/api/tickets", params={"cursor": cursor, **query})
        assert (answer.status, answer.code) == (400, "invalid_parameter"), query
    for limit in ("1", "100"):
        more = {"cursor": cursor, "status": "closed", "limit": limit}
        answer = await filled.client.request("GET", "/api/tickets", params=more)
        numbers = [ticket["number"] for ticket in answer.body["tickets"]]
        assert numbers == expected(filled.rows, {"status": "closed"}, "-created_at")[2 : 2 + int(limit)]


async def test_another_tenants_users_and_cursors_open_no_view_of_its_tickets(
    filled: Filled, desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient]
) -> None:
    (stranger,) = await desk.organization()
    other = client_of(stranger)
    mine = (await other.create("Mine")).body
    cursor = (await filled.client.request("GET", "/api/tickets", params={"limit": "1"})).body["next_cursor"]
    for query in (
        {"user_id": str(filled.many.importer)},
        {"assigned_to": str(filled.many.agent(1))},
        {"assigned_to": str(filled.many.agent(1)), "user_id": str(filled.many.importer)},
    ):
        for sort in SORTS:
            assert await listed(other, sort=sort, **query) == []
    for query in ({}, {"assigned_to": "none"}, {"status": "open"}, {"priority": "normal"}):
        for sort in SORTS:
            assert [ticket["id"] for ticket in await listed(other, sort=sort, **query)] == [mine["id"]]
    assert await listed(other, cursor=cursor) == []  # a place in time: what is newer than it is not on the page


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"sort": "created_at"},
        {"status": "solved"},
        {"status": "solved,open", "sort": "created_at"},
        {"priority": "normal,high", "status": "solved"},
        {"sort": "updated_at", "status": "solved,closed"},
        {"sort": "-updated_at"},
        {"assigned_to": "ME"},
        {"assigned_to": "ME", "sort": "-updated_at"},
        {"assigned_to": "ME", "user_id": "ME", "sort": "updated_at"},
        {"user_id": "ME", "priority": "normal"},
    ],
    ids=lambda query: " ".join(f"{name}={value}" for name, value in query.items()) or "no filter",
)
async def test_pages_neither_repeat_nor_skip_what_is_there_while_others_write(
    desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient], query: dict[str, str]
) -> None:
    """Existing tickets are found once each and in order, whatever is created and changed around them meanwhile."""
    reader, writer = await desk.organization(Role.ADMIN, Role.AGENT)
    client, other = client_of(reader), client_of(writer)
    query = {name: value.replace("ME", str(reader.user_id)) for name, value in query.items()}
    bulk = {"tickets": [{"title": f"Old {n}"} for n in range(60)]}  # all of one moment
    await client.request("POST", "/api/tickets/bulk", json=bulk)
    for ticket in await listed(client):
        await client.update(ticket["id"], 1, status="solved", assigned_to=str(reader.user_id))
    existing = {ticket["id"]: ticket["version"] for ticket in await listed(client, **query)}
    assert len(existing) == 60
    others = Writers([client, other])
    async with asyncio.TaskGroup() as group:
        for seed in range(3):
            group.create_task(others.write(seed))
        try:
            for limit in ("3", "10", "37"):
                seen: list[dict[str, Any]] = []
                async for page in pages(client, limit=limit, **query):
                    seen += page
                    if len(seen) < 150:
                        await others.until_one_more_is_written()
                    else:  # an ascending list's end moves away as long as there are writers
                        others.resting = True
                others.resting = False
                ids = [ticket["id"] for ticket in seen if ticket["id"] in existing]
                assert sorted(ids) == sorted(existing), limit
                sort = query.get("sort", "-created_at")
                places = [(ticket[sort.removeprefix("-")], ticket["id"]) for ticket in seen]
                assert places == sorted(places, reverse=sort.startswith("-"))
                if sort.endswith("created_at"):
                    assert len({ticket["id"] for ticket in seen}) == len(seen)
        finally:
            others.stopped = True


class Writers:
    """Create and change tickets of their own, so that these come and go in every list."""

    def __init__(self, clients: list[TicketsClient]) -> None:
        self.written = 0
        self.resting = False
        self.stopped = False
        self._clients = clients
        self._users = [str(client.principal.user_id) for client in clients]

    async def write(self, seed: int) -> None:
        rng = random.Random(seed)
        mine: list[tuple[str, int]] = []
        while not self.stopped:
            if self.resting:
                await asyncio.sleep(0.01)
                continue
            by = rng.choice(self._clients)
            if rng.random() < 0.3:
                batch = [{"title": "New", "priority": rng.choice(list(Priority))} for _ in range(5)]
                assert (await by.request("POST", "/api/tickets/bulk", json={"tickets": batch})).status == 200
            ticket = (await by.create("New", priority=rng.choice(list(Priority)))).body
            mine.append((ticket["id"], 1))
            ticket_id, version = mine.pop(rng.randrange(len(mine)))
            changes = {"status": rng.choice(list(Status)), "assigned_to": rng.choice([*self._users, None])}
            changed = await by.update(ticket_id, version, title=f"New {version}", **changes)
            mine.append((ticket_id, changed.body["version"]))
            self.written += 1

    async def until_one_more_is_written(self) -> None:
        before = self.written

        async def more() -> bool:
            return self.written > before

        await eventually(more)


@pytest.mark.parametrize("sort", ["created_at", "-created_at"])
async def test_comments_are_paged_while_others_comment(client: TicketsClient, sort: str) -> None:
    ticket_id = (await client.create()).body["id"]
    path = f"/api/tickets/{ticket_id}/comments"
    existing = [(await client.request("POST", path, json={"body": f"Old {n}"})).body["id"] for n in range(23)]
    assert [one["id"] for one in await listed(client, path)] == existing, "oldest first by default"
    seen: list[dict[str, Any]] = []
    added = 0
    async for page in pages(client, path, sort=sort, limit="4"):
        assert len(page) <= 4
        seen += page
        if added < 5:
            assert (await client.request("POST", path, json={"body": "New"})).status == 201
            added += 1
    ids = [one["id"] for one in seen]
    assert len(set(ids)) == len(ids)
    if sort == "created_at":
        assert ids[:23] == existing
        assert [one["body"] for one in seen[23:]] == ["New"] * 5
    else:
        assert ids == existing[::-1]
    assert all(one["ticket_id"] == ticket_id for one in seen)


async def test_a_link_leads_to_the_next_page_of_comments(client: TicketsClient) -> None:
    path = f"/api/tickets/{(await client.create()).body['id']}/comments"
    for n in range(3):
        await client.request("POST", path, json={"body": str(n)})
    first = await client.request("GET", path, params={"limit": "2", "sort": "-created_at"})
    target, _, relation = first.headers["Link"].removeprefix("<").partition(">")
    assert relation == '; rel="next"'
    last = await client.request("GET", target)
    assert [one["body"] for one in first.body["comments"] + last.body["comments"]] == ["2", "1", "0"]
    assert "Link" not in last.headers
    assert last.body["next_cursor"] is None
    assert last.headers[HEADER]


async def test_comments_of_a_ticket_without_any_and_of_no_ticket(client: TicketsClient) -> None:
    ticket_id = (await client.create()).body["id"]
    empty = await client.request("GET", f"/api/tickets/{ticket_id}/comments")
    assert (empty.status, empty.body) == (200, {"comments": [], "next_cursor": None})
    missing = await client.request("GET", f"/api/tickets/{uuid.uuid4()}/comments")
    assert (missing.status, missing.code) == (404, "ticket_not_found")


async def test_a_cursor_of_comments_serves_its_ticket_and_order_only(client: TicketsClient) -> None:
    paths = [f"/api/tickets/{(await client.create()).body['id']}/comments" for _ in range(2)]
    for path in paths:
        for n in range(2):
            await client.request("POST", path, json={"body": str(n)})
    cursor = (await client.request("GET", paths[0], params={"limit": "1"})).body["next_cursor"]
    assert (await client.request("GET", paths[0], params={"cursor": cursor})).status == 200
    for path, query in ((paths[1], {}), (paths[0], {"sort": "-created_at"}), ("/api/tickets", {})):
        answer = await client.request("GET", path, params={"cursor": cursor, **query})
        assert (answer.status, answer.code) == (400, "invalid_parameter")


@pytest.mark.parametrize(
    "query",
    [{"sort": "updated_at"}, {"sort": ""}, {"limit": "0"}, {"limit": "101"}, {"cursor": "x"}, {"cursor": ""}],
)
async def test_comments_cannot_be_asked_for_in_another_way(client: TicketsClient, query: dict[str, str]) -> None:
    path = f"/api/tickets/{(await client.create()).body['id']}/comments"
    answer = await client.request("GET", path, params=query)
    assert (answer.status, answer.code) == (400, "invalid_parameter")

"""Cached reads, paging, conditional requests and consistency, through two real gateways."""

import asyncio
import json
import time
import uuid
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from libs.common.cache.tags import CHANNEL
from tests.support.clients import Tenant
from tests.support.desk import Desk, Reply, problem

TOKEN = "Relaydesk-Consistency"
BEHIND_SECONDS = 2.0


async def create(desk: Desk, tenant: Tenant, title: str = "A ticket", *, gateway: int = 0) -> Reply:
    reply = await desk.ask("POST", "/api/tickets", {"title": title}, who=tenant, gateway=gateway)
    assert reply.status == 201, reply
    return reply


async def update(desk: Desk, tenant: Tenant, ticket: str, version: int, *, gateway: int = 0) -> Reply:
    reply = await desk.ask(
        "PATCH",
        f"/api/tickets/{ticket}",
        {"title": f"Version {version + 1}"},
        {"If-Match": f'"{version}"'},
        who=tenant,
        gateway=gateway,
    )
    assert reply.status == 200, reply
    return reply


async def read(desk: Desk, tenant: Tenant, target: str, *, gateway: int = 0, token: str | None = None) -> Reply:
    reply = await desk.ask("GET", target, None, {TOKEN: token}, who=tenant, gateway=gateway)
    assert reply.status == 200, reply
    return reply


async def read_until(desk: Desk, target: str, outcome: str, *, gateway: int = 0) -> Reply:
    """Read until a cache level answers: what was written just now is still being invalidated by its event."""
    async with asyncio.timeout(20):
        while True:
            reply = await read(desk, desk.acme, target, gateway=gateway)
            if reply.headers["relaydesk-cache"] == outcome:
                return reply


@pytest_asyncio.fixture(loop_scope="session")
async def ticket(desk: Desk) -> str:
    return str((await create(desk, desk.acme)).json()["id"])


async def test_an_answer_says_which_level_gave_it(desk: Desk, ticket: str) -> None:
    target = f"/api/tickets/{ticket}"
    first = await read_until(desk, target, "l1")
    assert first.headers["etag"] == '"1"'
    assert first.headers["cache-control"] == "private, no-cache"
    assert await read_until(desk, target, "l1", gateway=1)
    other = await read(desk, desk.acme, target, gateway=1)
    assert other.body == first.body


async def test_the_second_gateway_finds_what_the_first_has_loaded(desk: Desk, ticket: str) -> None:
    async with asyncio.timeout(30):
        while True:
            target = f"/api/tickets/{ticket}?{uuid.uuid4().hex}"
            await read_until(desk, target, "l1")
            second = [(await read(desk, desk.acme, target, gateway=1)).headers["relaydesk-cache"] for _ in range(2)]
            if second[0] != "miss":  # else the event of the creation came between
                break
    assert second == ["l2", "l1"]


async def test_a_writer_reads_its_own_writes_and_a_token_carries_them_to_another_gateway(
    desk: Desk, ticket: str
) -> None:
    target = f"/api/tickets/{ticket}"
    for version in range(1, 16):
        for gateway in (0, 1):
            await read(desk, desk.acme, target, gateway=gateway)
        writer = version % 2
        token = (await update(desk, desk.acme, ticket, version, gateway=writer)).headers[TOKEN.lower()]
        own = await read(desk, desk.acme, target, gateway=writer)
        assert own.json()["version"] == version + 1
        carried = await read(desk, desk.acme, target, gateway=1 - writer, token=token)
        assert carried.json()["version"] == version + 1
        assert carried.headers[TOKEN.lower()] >= token
        listed = await read(desk, desk.acme, "/api/tickets?limit=5", gateway=1 - writer, token=token)
        assert {t["id"]: t["version"] for t in listed.json()["tickets"]}[ticket] == version + 1


async def test_comments_are_read_back_at_once(desk: Desk, ticket: str) -> None:
    target = f"/api/tickets/{ticket}/comments"
    for number in range(1, 6):
        await read(desk, desk.acme, target)
        made = await desk.ask("POST", target, {"body": f"Comment {number}"}, who=desk.acme)
        assert made.status == 201
        assert [c["body"] for c in (await read(desk, desk.acme, target)).json()["comments"]][-1] == f"Comment {number}"
        there = await read(desk, desk.acme, target, gateway=1, token=made.headers[TOKEN.lower()])
        assert len(there.json()["comments"]) == number


async def test_everybody_else_is_at_most_two_seconds_behind(desk: Desk, ticket: str) -> None:
    target = f"/api/tickets/{ticket}"
    await read_until(desk, target, "l1", gateway=1)
    await update(desk, desk.acme, ticket, 1, gateway=0)
    deadline = time.monotonic() + BEHIND_SECONDS
    while (await read(desk, desk.acme, target, gateway=1)).json()["version"] != 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("spelling", [str.upper, lambda text: uuid.UUID(text).hex, "urn:uuid:{}".format])
async def test_an_id_in_another_spelling_is_the_same_ticket_to_the_cache(
    desk: Desk, ticket: str, spelling: Any
) -> None:
    target, other = f"/api/tickets/{ticket}", f"/api/tickets/{spelling(ticket)}"
    await read_until(desk, other, "l1")
    await update(desk, desk.acme, ticket, 1)
    assert (await read(desk, desk.acme, other)).json()["version"] == 2
    await read_until(desk, target, "l1")
    reply = await desk.ask("PATCH", other, {"title": "Again"}, {"If-Match": '"2"'}, who=desk.acme)
    assert reply.status == 200
    assert (await read(desk, desk.acme, target)).json()["version"] == 3


async def test_what_has_not_changed_is_not_sent_again(desk: Desk, ticket: str) -> None:
    for target in (f"/api/tickets/{ticket}", f"/api/tickets/{ticket}/comments", "/api/tickets?limit=3"):
        etag = (await read(desk, desk.acme, target)).headers["etag"]
        assert etag.startswith('"')
        for condition in (etag, f'"x", W/{etag}', "*"):
            reply = await desk.ask("GET", target, None, {"If-None-Match": condition}, who=desk.acme)
            assert (reply.status, reply.body) == (304, b""), (target, condition)
            assert reply.headers["etag"] == etag
            assert reply.headers[TOKEN.lower()]
        assert (await desk.ask("GET", target, None, {"If-None-Match": '"x"'}, who=desk.acme)).status == 200
    await update(desk, desk.acme, ticket, 1)
    reply = await desk.ask("GET", f"/api/tickets/{ticket}", None, {"If-None-Match": '"1"'}, who=desk.acme)
    assert (reply.status, reply.headers["etag"]) == (200, '"2"')


async def test_pages_are_linked(desk: Desk) -> None:
    made = [(await create(desk, desk.other, f"Page {n}")).json()["id"] for n in range(5)]
    found: list[str] = []
    target: str | None = "/api/tickets?limit=2"
    while target is not None and len(found) < 5:
        reply = await read(desk, desk.other, target)
        page = reply.json()
        found += [ticket["id"] for ticket in page["tickets"]]
        link = reply.headers.get("link")
        assert (link is None) == (page["next_cursor"] is None)
        target = None
        if link is not None:
            target, _, relation = link.partition(">")
            assert relation == '; rel="next"'
            target = target.removeprefix("<")
            assert target.startswith("/api/tickets?")
            assert "limit=2" in target
    assert found[:5] == made[::-1], "newest first"


async def agent(desk: Desk, number: int) -> Tenant:
    """Another user of acme, with a key of its own."""
    user = desk.acme.users[number]
    credentials = {"organization": desk.acme.slug, "email": user["email"], "password": user["password"]}
    signed_in = await desk.ask("POST", "/api/session", credentials)
    session = {
        "Cookie": signed_in.headers["set-cookie"].partition(";")[0],
        "X-CSRF-Token": signed_in.json()["csrf_token"],
    }
    key = (await desk.ask("POST", "/api/keys", {"name": "lists"}, session)).json()
    provisioned = {"organization": {"id": desk.acme.organization_id}, "users": [user], "api_key": key}
    return Tenant(desk.acme.slug, provisioned)


async def test_two_users_who_ask_for_their_own_tickets_get_their_own(desk: Desk) -> None:
    """They have the same role and send the same query, and the answers come from the cache."""
    users = [await agent(desk, 1), await agent(desk, 2)]
    mine: list[tuple[str, str]] = []
    for user in users:
        created = (await create(desk, user, "Mine")).json()["id"]
        assigned = (await create(desk, desk.acme, "For me")).json()["id"]
        changes = {"assigned_to": user.users[0]["id"]}
        reply = await desk.ask("PATCH", f"/api/tickets/{assigned}", changes, {"If-Match": '"1"'}, who=desk.acme)
        assert reply.status == 200
        mine.append((assigned, created))
    async with asyncio.timeout(20):
        outcomes: set[str] = set()
        while "l1" not in outcomes:
            for gateway in (0, 1):
                for user, (assigned, created) in zip(users, mine, strict=True):
                    for query, expected in (("assigned_to=me", assigned), ("user_id=me", created)):
                        reply = await read(desk, user, f"/api/tickets?{query}", gateway=gateway)
                        assert [ticket["id"] for ticket in reply.json()["tickets"]] == [expected]
                        outcomes.add(reply.headers["relaydesk-cache"])
    same = [await read(desk, desk.acme, f"/api/tickets?assigned_to={user.users[0]['id']}") for user in users]
    assert [[ticket["id"] for ticket in reply.json()["tickets"]] for reply in same] == [[mine[0][0]], [mine[1][0]]]


async def test_a_link_of_ones_own_tickets_leads_to_the_next_page(desk: Desk) -> None:
    user = await agent(desk, 1)
    made = [(await create(desk, user, f"Mine {n}")).json()["id"] for n in range(3)]
    first = await read(desk, user, "/api/tickets?user_id=me&limit=2&sort=-created_at&status=pending,open")
    target = first.headers["link"].removeprefix("<").partition(">")[0]
    second = await read(desk, user, target)
    found = [ticket["id"] for reply in (first, second) for ticket in reply.json()["tickets"]]
    assert found[:3] == made[::-1]


async def test_names_in_another_order_are_the_same_list_to_the_cache(desk: Desk) -> None:
    await read_until(desk, "/api/tickets?status=open,pending&priority=low,urgent&limit=3", "l1")
    for query in (
        "limit=3&priority=urgent,low&status=pending,open",
        "status=open,open,pending&priority=low,urgent&limit=3",
    ):
        assert (await read(desk, desk.acme, f"/api/tickets?{query}")).headers["relaydesk-cache"] == "l1"


async def all_tickets(desk: Desk, tenant: Tenant, token: str) -> list[dict[str, Any]]:
    target: str | None = "/api/tickets?limit=100"
    found: list[dict[str, Any]] = []
    while target is not None:
        page = await read(desk, tenant, target, token=token)
        found += page.json()["tickets"]
        link = page.headers.get("link")
        target = link.removeprefix("<").partition(">")[0] if link else None
    return found


async def test_comments_are_paged_through_the_gateway(desk: Desk, ticket: str) -> None:
    target = f"/api/tickets/{ticket}/comments"
    for number in range(3):
        assert (await desk.ask("POST", target, {"body": str(number)}, who=desk.acme)).status == 201
    first = await read(desk, desk.acme, f"{target}?sort=-created_at&limit=2")
    second = await read(desk, desk.acme, first.headers["link"].removeprefix("<").partition(">")[0])
    assert [one["body"] for reply in (first, second) for one in reply.json()["comments"]] == ["2", "1", "0"]
    assert "link" not in second.headers


async def test_reports_are_of_ones_own_organization_and_never_cached(desk: Desk) -> None:
    for _ in range(2):
        token = (await create(desk, desk.acme)).headers[TOKEN.lower()]
        for tenant in (desk.acme, desk.other):
            reply = await read(desk, tenant, "/api/reports/tickets?by=day", token=token)
            backlog = (await read(desk, tenant, "/api/reports/backlog", token=token)).json()
            listed = await all_tickets(desk, tenant, token)
            assert reply.json()["total"] == len(listed)
            unsolved = [ticket for ticket in listed if ticket["status"] in {"open", "pending"}]
            assert backlog["ages"]["count"] == len(unsolved)
            assert reply.headers["cache-control"] == "private, no-store"
            assert reply.headers[TOKEN.lower()] >= token
    for query in ("tickets?by=night", "tickets?from=x", "times?to=2026-02-30"):
        assert problem(await desk.ask("GET", f"/api/reports/{query}", who=desk.acme)) == (400, "invalid_parameter")
    assert problem(await desk.ask("GET", "/api/reports/tickets")) == (401, "authentication_required")


async def test_different_searches_one_after_another_are_answered_and_cached(desk: Desk) -> None:
    """Search answers know no position in the log; their tag lives with that."""
    word = f"w{uuid.uuid4().hex}"
    made = await create(desk, desk.acme, f"Printer {word}")
    async with asyncio.timeout(30):
        while not (await read(desk, desk.acme, f"/api/search?q={word}")).json()["results"]:
            await asyncio.sleep(0.05)
    for query in ("printer", word, f"printer%20{word}", "nothing-of-this"):
        for _ in range(3):
            await read(desk, desk.acme, f"/api/search?q={query}")
    reply = await read_until(desk, f"/api/search?q={word}", "l1")
    assert [result["ticket"]["id"] for result in reply.json()["results"]] == [made.json()["id"]]
    assert TOKEN.lower() not in reply.headers


async def found(desk: Desk, word: str, *tickets: str, gateway: int = 0) -> None:
    """Wait until a search shows these."""
    async with asyncio.timeout(30):
        while True:
            reply = await read(desk, desk.acme, f"/api/search?q={word}", gateway=gateway)
            if {result["ticket"]["id"] for result in reply.json()["results"]} == set(tickets):
                return
            await asyncio.sleep(0.02)


async def test_a_search_is_made_old_by_what_concerns_it_and_by_nothing_else(desk: Desk) -> None:
    mine, marks = f"w{uuid.uuid4().hex}", [f"m{uuid.uuid4().hex}" for _ in range(2)]
    target = f"/api/search?q={mine}"
    shown = (await create(desk, desk.acme, f"Printer {mine}")).json()["id"]
    other = (await create(desk, desk.acme, "Scanner")).json()["id"]
    for gateway in (0, 1):
        await found(desk, mine, shown, gateway=gateway)
        for mark in marks:
            await found(desk, mark, gateway=gateway)
        await read_until(desk, target, "l1", gateway=gateway)

    async def comment(ticket: str, body: str) -> None:
        path = f"/api/tickets/{ticket}/comments"
        assert (await desk.ask("POST", path, {"body": body}, who=desk.acme)).status == 201

    await comment(other, marks[0])
    for gateway in (0, 1):
        await found(desk, marks[0], other, gateway=gateway)  # so the gateway has heard of the comment
        assert (await read(desk, desk.acme, target, gateway=gateway)).headers["relaydesk-cache"] == "l1"
    await comment(other, f"{marks[1]} {mine}")
    for gateway in (0, 1):
        await found(desk, marks[1], other, gateway=gateway)
        await found(desk, mine, shown, other, gateway=gateway)
    reply = await desk.ask("PATCH", f"/api/tickets/{shown}", {"status": "solved"}, {"If-Match": '"1"'}, who=desk.acme)
    assert reply.status == 200
    for gateway in (0, 1):
        async with asyncio.timeout(30):
            while "solved" not in (await read(desk, desk.acme, target, gateway=gateway)).body.decode():
                await asyncio.sleep(0.02)


async def test_a_search_of_negations_is_made_old_by_every_change(desk: Desk) -> None:
    without = f"w{uuid.uuid4().hex}"
    target = f"/api/search?q=-{without}&limit=1"
    for gateway in (0, 1):
        await read_until(desk, target, "l1", gateway=gateway)
    newest = (await create(desk, desk.acme, "Scanner")).json()["number"]
    for gateway in (0, 1):
        async with asyncio.timeout(30):
            while True:
                reply = await read(desk, desk.acme, f"{target}&x={newest}", gateway=gateway)
                cached = await read(desk, desk.acme, target, gateway=gateway)
                shown = {result["ticket"]["number"] for result in (*reply.json()["results"], *cached.json()["results"])}
                if shown == {newest}:
                    break
                await asyncio.sleep(0.02)


async def test_a_token_from_the_future_is_refused_and_fails_nobody_else(desk: Desk, ticket: str) -> None:
    target = f"/api/tickets/{ticket}"
    future = "00000001-7fffffffffffffff"
    replies = await asyncio.gather(
        *(
            desk.ask("GET", f"{target}?{n // 4}", None, {TOKEN: future if n % 4 == 0 else None}, who=desk.acme)
            for n in range(40)
        )
    )
    for n, reply in enumerate(replies):
        if n % 4 == 0:
            assert problem(reply) == (400, "invalid_parameter")
        else:
            assert reply.status == 200, reply


async def test_internal_headers_of_a_client_are_ignored_and_none_is_told(desk: Desk, ticket: str) -> None:
    forged = {
        "Relaydesk-Principal": "eyJhbGciOiJub25lIn0.e30.",
        "Relaydesk-As-Of": "00000001-ffffffffffffffff",
        "Relaydesk-Read-Primary": "1",
        "X-Forwarded-For": "127.0.0.1",
    }
    target = f"/api/tickets/{ticket}?{uuid.uuid4().hex}"
    replies = [
        await desk.ask("GET", target, None, forged, who=desk.acme),
        await desk.ask("GET", target, None, forged, who=desk.acme),
        await desk.ask("GET", "/api/tickets", None, forged, who=desk.acme),
        await desk.ask("POST", "/api/tickets", {"title": "Mine"}, forged, who=desk.acme),
        await desk.ask("GET", "/api/keys", None, forged, who=desk.acme),
        await desk.ask("GET", "/api/search?q=mine", None, forged, who=desk.acme),
    ]
    for reply in replies:
        assert reply.status in {200, 201}
        told = {name for name in reply.headers if name.startswith("relaydesk-")}
        assert told <= {"relaydesk-consistency", "relaydesk-cache"}
        for value in reply.headers.values():
            assert not value.startswith("eyJ"), "no internal token comes out"
    assert replies[3].json()["organization_id"] == desk.acme.organization_id
    without_credential = await desk.ask("GET", target, None, forged)
    assert problem(without_credential) == (401, "authentication_required")


ROUTES = (
    ("GET", "/api/tickets/{ticket}", None),
    ("PATCH", "/api/tickets/{ticket}", {"title": "Taken over"}),
    ("POST", "/api/tickets/{ticket}/comments", {"body": "I was here"}),
    ("GET", "/api/tickets/{ticket}/comments", None),
    ("GET", "/api/tickets/..%2f..%2finternal%2ftickets%2f{ticket}?organization_id={organization}", None),
    ("GET", "/api/tickets/%2e%2e%2f%2e%2e%2finternal%2ftickets%2f{ticket}?organization_id={organization}", None),
    ("GET", "/api/tickets/{ticket}?organization_id={organization}", None),
    ("DELETE", "/api/keys/{key}", None),
)


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_another_organizations_ids_lead_nowhere(
    desk: Desk, database: asyncpg.Pool, method: str, path: str, body: Any
) -> None:
    secret = f"secret-{uuid.uuid4().hex}"
    ticket = (await create(desk, desk.other, secret)).json()["id"]
    key = (await desk.ask("POST", "/api/keys", {"name": secret}, who=desk.other)).json()
    target = path.format(ticket=ticket, key=key["id"], organization=desk.other.organization_id)
    headers: dict[str, str | bytes | None] = {"If-Match": '"1"'}
    # The owner's answer stands in every cache level when the stranger asks.
    for gateway in (0, 1):
        await read(desk, desk.other, f"/api/tickets/{ticket}", gateway=gateway)
        await read(desk, desk.other, f"/api/tickets/{ticket}/comments", gateway=gateway)
    for gateway in (0, 1):
        reply = await desk.ask(method, target, body, headers, who=desk.acme, gateway=gateway)
        assert reply.status == 404, reply
        assert problem(reply)[1] in {"ticket_not_found", "key_not_found"}
        assert secret not in reply.body.decode()
    row = await database.fetchrow(
        "SELECT version, (SELECT count(*) FROM comments c WHERE c.ticket_id = t.id) AS comments FROM tickets t"
        " WHERE id = $1",
        uuid.UUID(ticket),
    )
    assert tuple(row) == (1, 0)
    assert (await desk.ask("GET", "/api/session", None, {"Authorization": f"Bearer {key['key']}"})).status == 200


async def test_lists_and_searches_show_ones_own_organization_only(desk: Desk) -> None:
    word = f"w{uuid.uuid4().hex}"
    theirs = (await create(desk, desk.other, f"Theirs {word}")).json()["id"]
    async with asyncio.timeout(30):
        while not (await read(desk, desk.other, f"/api/search?q={word}")).json()["results"]:
            await asyncio.sleep(0.05)
    for target in ("/api/tickets?limit=100", f"/api/search?q={word}", "/api/keys"):
        reply = await read(desk, desk.acme, target)
        assert theirs not in reply.body.decode()
        assert desk.other.organization_id not in reply.body.decode()
    keys = (await read(desk, desk.acme, "/api/keys")).json()["keys"]
    assert {key["user_id"] for key in keys} <= {user["id"] for user in desk.acme.users}
    assignee = await desk.ask(
        "PATCH",
        f"/api/tickets/{(await create(desk, desk.acme)).json()['id']}",
        {"assigned_to": desk.other.users[0]["id"]},
        {"If-Match": '"1"'},
        who=desk.acme,
    )
    assert problem(assignee) == (422, "validation_failed"), "nor can one of theirs be assigned"


async def test_the_absolute_form_of_a_target_is_understood(desk: Desk, ticket: str) -> None:
    """RFC 9112, section 3.2.2: servers must accept it; the services behind are asked for the path alone."""
    listed = await desk.ask("GET", "http://desk/api/keys", who=desk.acme)
    assert listed.status == 200, listed
    assert (await read(desk, desk.acme, f"http://desk/api/tickets/{ticket}")).json()["id"] == ticket


async def test_the_document_is_served(desk: Desk) -> None:
    reply = await desk.ask("GET", "/api/openapi.json")
    assert reply.status == 200
    assert json.loads(reply.body)["openapi"].startswith("3.1")
    assert CHANNEL not in reply.body.decode()

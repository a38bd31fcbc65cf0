"""Tickets over HTTP, as the gateway asks for them, in a real PostgreSQL."""

import asyncio
import itertools
import random
import uuid
from collections.abc import Callable

import aiohttp
import msgspec
import pytest
import yarl

from infra.local.stack import Stack
from libs.common.consistency import AS_OF_HEADER, Position
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Principal, Signer
from libs.common.models import Role
from tests.support.processes import TestedService
from tests.support.tickets import TicketsClient, TicketsDatabase

OUTBOX = "SELECT version, type, data, position FROM outbox WHERE ticket_id = $1 ORDER BY position"


async def test_a_ticket_is_created_read_changed_and_commented(client: TicketsClient, desk: TicketsDatabase) -> None:
    created = await client.create(
        "Printer on fire", description="It burns.", priority="urgent", external_id="x-1", fields={"floor": "3"}
    )
    ticket = created.body
    path = f"/api/tickets/{ticket['id']}"
    assert created.headers["Location"] == path
    assert created.headers["ETag"] == '"1"'
    assert uuid.UUID(ticket["id"]).version == 7
    assert ticket | {"id": 0, "created_at": 0, "updated_at": 0} == {
        "id": 0,
        "number": 1,
        "organization_id": str(client.principal.organization_id),
        "title": "Printer on fire",
        "description": "It burns.",
        "status": "open",
        "priority": "urgent",
        "user_id": str(client.principal.user_id),
        "assigned_to": None,
        "external_id": "x-1",
        "fields": {"floor": "3"},
        "version": 1,
        "created_at": 0,
        "updated_at": 0,
        "first_response_at": None,
        "solved_at": None,
    }
    read = await client.request("GET", path)
    assert (read.status, read.body, read.headers["ETag"]) == (200, ticket, '"1"')

    me = str(client.principal.user_id)
    changed = await client.update(ticket["id"], 1, status="pending", assigned_to=me)
    assert changed.status == 200
    assert changed.headers["ETag"] == '"2"'
    assert changed.body == ticket | {
        "status": "pending",
        "assigned_to": me,
        "version": 2,
        "updated_at": changed.body["updated_at"],
    }
    commented = await client.request("POST", f"{path}/comments", json={"body": "On my way."})
    assert commented.status == 201
    assert (commented.body["ticket_id"], commented.body["author_id"]) == (ticket["id"], me)
    comments = await client.request("GET", f"{path}/comments")
    assert comments.body == {"comments": [commented.body], "next_cursor": None}
    final = (await client.request("GET", path)).body
    assert final == changed.body | {"version": 3, "updated_at": commented.body["created_at"]}

    rows = await desk.superuser.fetch(OUTBOX, uuid.UUID(ticket["id"]))
    assert [(row["version"], row["type"]) for row in rows] == [
        (1, "ticket.created.v1"),
        (2, "ticket.status_changed.v1"),
        (3, "ticket.commented.v1"),
    ]
    values = [msgspec.json.decode(row["data"]) for row in rows]
    assert [value["ticket"] for value in values] == [ticket, changed.body, final]
    assert [value["changed"] for value in values] == [[], ["status", "assigned_to"], []]
    assert values[2]["comment"] == commented.body
    assert all(value["actor"] == {"id": me, "kind": "session", "name": "Test"} for value in values)


async def test_a_change_that_changes_nothing_is_no_event(client: TicketsClient, desk: TicketsDatabase) -> None:
    ticket = (await client.create("Same")).body
    before = await desk.counts()
    answer = await client.update(ticket["id"], 1, title="Same", status="open", assigned_to=None)
    assert (answer.status, answer.body) == (200, ticket)
    assert await desk.counts() == before


async def test_fifty_creations_at_once_are_numbered_without_gaps(client: TicketsClient) -> None:
    answers = await asyncio.gather(*(client.create(f"Number {n}") for n in range(50)))
    assert sorted(answer.body["number"] for answer in answers) == list(range(1, 51))
    by_number = sorted(answers, key=lambda answer: int(answer.body["number"]))
    assert [a.body["created_at"] for a in by_number] == sorted(a.body["created_at"] for a in answers)


async def test_a_refused_creation_leaves_no_gap(client: TicketsClient) -> None:
    await client.create(external_id="taken")
    refused = await client.request("POST", "/api/tickets", json={"title": "x", "external_id": "taken"})
    assert (refused.status, refused.code) == (409, "external_id_taken")
    assert (await client.create()).body["number"] == 2


async def test_of_concurrent_updates_of_one_version_exactly_one_succeeds(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    ticket = (await client.create()).body
    answers = await asyncio.gather(*(client.update(ticket["id"], 1, title=f"Mine {n}") for n in range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [412] * 19
    (winner,) = [answer for answer in answers if answer.status == 200]
    losers = [answer for answer in answers if answer.status == 412]
    assert all((a.code, a.body["current_version"]) == ("version_mismatch", 2) for a in losers)
    assert (await client.request("GET", f"/api/tickets/{ticket['id']}")).body == winner.body
    assert (
        await desk.superuser.fetchval("SELECT count(*) FROM outbox WHERE ticket_id = $1", uuid.UUID(ticket["id"])) == 2
    )


async def test_no_update_is_lost(client: TicketsClient, desk: TicketsDatabase) -> None:
    """Eight writers append to a title, each trying again with the version it was told, among comments."""
    ticket_id = (await client.create("-")).body["id"]
    path = f"/api/tickets/{ticket_id}"

    async def append(name: str) -> None:
        for _ in range(5):
            while True:
                current = (await client.request("GET", path)).body
                answer = await client.update(ticket_id, current["version"], title=current["title"] + name)
                if answer.status == 200:
                    break
                assert answer.status == 412
                await asyncio.sleep(random.uniform(0, 0.01))

    async def comment() -> None:
        for n in range(5):
            assert (await client.request("POST", f"{path}/comments", json={"body": str(n)})).status == 201

    await asyncio.gather(*(append(name) for name in "abcdefgh"), comment(), comment())
    final = (await client.request("GET", path)).body
    assert sorted(final["title"]) == sorted("-" + "abcdefgh" * 5)
    assert final["version"] == 1 + 8 * 5 + 10
    rows = await desk.superuser.fetch(OUTBOX, uuid.UUID(ticket_id))
    assert [row["version"] for row in rows] == list(range(1, final["version"] + 1))  # in the order of positions
    titles = [msgspec.json.decode(row["data"])["ticket"]["title"] for row in rows]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(titles))


async def test_a_bulk_tells_the_fate_of_every_row(client: TicketsClient, desk: TicketsDatabase) -> None:
    known = (await client.create("Known", external_id="k-1")).body
    rows = [
        {"title": "First", "external_id": "k-2"},
        {"title": ""},
        {"title": "Known again", "external_id": "k-1"},
        {"title": "Second", "fields": {"a": "b"}},
        {"title": "First again", "external_id": "k-2"},
        17,
    ]
    before = await desk.counts()
    answer = await client.request("POST", "/api/tickets/bulk", json={"tickets": rows})
    assert answer.status == 200
    results = answer.body["results"]
    assert [result["index"] for result in results] == list(range(6))
    assert [result["status"] for result in results] == [
        "created",
        "refused",
        "exists",
        "created",
        "exists",
        "refused",
    ]
    assert [result["number"] for result in results] == [2, None, 1, 3, 2, None]
    assert results[2]["id"] == known["id"]
    assert results[4]["id"] == results[0]["id"]
    assert results[1]["problem"]["code"] == "validation_failed"
    assert results[1]["problem"]["errors"][0]["pointer"] == "/title"
    after = await desk.counts()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "tickets": 2,
        "outbox": 2,
        "ticket_history": 2,
        "numbers": 2,
    }
    read = await client.request(
        "GET", f"/api/tickets/{results[3]['id']}", headers={"Relaydesk-Consistency": answer.token}
    )
    assert (read.body["title"], read.body["fields"], read.body["version"]) == ("Second", {"a": "b"}, 1)
    (event,) = await desk.superuser.fetch(OUTBOX, uuid.UUID(results[3]["id"]))
    assert msgspec.json.decode(event["data"])["ticket"] == read.body

    again = await client.request("POST", "/api/tickets/bulk", json={"tickets": [rows[0], rows[2]]})
    assert [result["status"] for result in again.body["results"]] == ["exists", "exists"]
    assert (await client.create()).body["number"] == 4


async def test_bulks_and_creations_at_once_share_the_numbers_and_the_external_ids(client: TicketsClient) -> None:
    batches = [[{"title": "x", "external_id": f"{n % 7}-{batch % 3}"} for n in range(10)] for batch in range(8)]
    bulks = asyncio.gather(*(client.request("POST", "/api/tickets/bulk", json={"tickets": batch}) for batch in batches))
    singles = asyncio.gather(*(client.create() for _ in range(20)))
    results = [result for answer in await bulks for result in answer.body["results"]]
    created = [result for result in results if result["status"] == "created"]
    assert len(created) == 7 * 3
    numbers = [result["number"] for result in created] + [answer.body["number"] for answer in await singles]
    assert sorted(numbers) == list(range(1, 42))


async def test_external_ids_belong_to_an_organization(
    client: TicketsClient, desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient]
) -> None:
    await client.create(external_id="shared")
    (other,) = await desk.organization()
    assert (await client_of(other).create(external_id="shared")).status == 201


async def test_pages_miss_and_repeat_nothing_while_tickets_are_created(client: TicketsClient) -> None:
    bulk = {"tickets": [{"title": f"Old {n}"} for n in range(60)]}  # all of one moment
    await client.request("POST", "/api/tickets/bulk", json=bulk)
    for n in range(17):
        await client.create(f"Single {n}")
    existing = set(range(1, 78))
    stop = asyncio.Event()

    async def create() -> None:
        while not stop.is_set():
            await client.create("New")

    seen: list[int] = []
    async with asyncio.TaskGroup() as writers:
        for _ in range(3):
            writers.create_task(create())
        page = await client.request("GET", "/api/tickets", params={"limit": "10"})
        while True:
            seen += [ticket["number"] for ticket in page.body["tickets"]]
            cursor = page.body["next_cursor"]
            if cursor is None:
                break
            following = yarl.URL(page.headers["Link"].removeprefix("<").partition(">")[0])
            assert following.path == "/api/tickets"
            assert following.query == {"limit": "10", "cursor": cursor}
            page = await client.request("GET", str(following))
        stop.set()
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == len(set(seen))
    assert existing <= set(seen)
    assert "Link" not in page.headers


async def test_a_list_can_be_of_one_status(client: TicketsClient) -> None:
    ids = [(await client.create(f"T{n}")).body["id"] for n in range(6)]
    for ticket_id in ids[::2]:
        await client.update(ticket_id, 1, status="solved")
    found: list[str] = []
    cursor = ""
    while cursor is not None:
        parameters = {"status": "solved", "limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = await client.request("GET", "/api/tickets", params=parameters)
        found += [ticket["id"] for ticket in page.body["tickets"]]
        assert all(ticket["status"] == "solved" for ticket in page.body["tickets"])
        cursor = page.body["next_cursor"]
    assert found == ids[::2][::-1]


async def test_a_ticket_is_assigned_to_users_of_the_organization_only(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    ticket = (await client.create()).body
    (stranger,) = await desk.organization()
    for assignee in (str(stranger.user_id), str(uuid.uuid4())):
        refused = await client.update(ticket["id"], 1, assigned_to=assignee)
        assert (refused.status, refused.code) == (422, "validation_failed")
        assert refused.body["errors"] == [
            {"pointer": "/assigned_to", "message": "There is no such user in the organization"}
        ]
    assert (await client.request("GET", f"/api/tickets/{ticket['id']}")).body == ticket


async def test_the_tickets_of_another_organization_do_not_exist(
    client: TicketsClient, desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient]
) -> None:
    mine = (await client.create("Mine")).body
    (stranger,) = await desk.organization()
    other = client_of(stranger)
    path = f"/api/tickets/{mine['id']}"
    answers = [
        await other.request("GET", path),
        await other.update(mine["id"], 1, title="Yours"),
        await other.request("POST", f"{path}/comments", json={"body": "Hello"}),
        await other.request("GET", f"{path}/comments"),
    ]
    assert [(answer.status, answer.code) for answer in answers] == [(404, "ticket_not_found")] * 4
    assert (await other.request("GET", "/api/tickets")).body == {"tickets": [], "next_cursor": None}
    assert (await client.request("GET", path)).body == mine


async def test_only_signed_tokens_open_the_door(
    stack: Stack, service: TestedService, client: TicketsClient, desk: TicketsDatabase
) -> None:
    search = Signer(stack.credentials.signing_key("search"))
    gateway = Signer(stack.credentials.signing_key("gateway"))
    tokens = {
        "none": None,
        "garbage": "x.y.z",
        "for another service": gateway.principal_token(client.principal, "search"),
        "from a service that may not speak for users": search.principal_token(client.principal, "tickets"),
        "a service for itself": gateway.service_token("tickets"),
    }
    ticket = (await client.create()).body
    before = await desk.counts()
    async with aiohttp.ClientSession(service.url) as session:
        for name, token in tokens.items():
            headers = {PRINCIPAL_HEADER: token} if token else {}
            calls = [
                session.get("/api/tickets", headers=headers),
                session.post("/api/tickets", json={"title": "x"}, headers=headers),
                session.patch(f"/api/tickets/{ticket['id']}", json={}, headers=headers | {"If-Match": '"1"'}),
                session.post("/api/tickets/bulk", json={"tickets": [{"title": "x"}]}, headers=headers),
                session.post("/api/keys", json={"name": "x"}, headers=headers),
            ]
            for call in calls:
                async with call as answer:
                    assert answer.status == 401, name
                    assert (await answer.json(content_type=None))["code"] == "authentication_required"
    assert await desk.counts() == before


async def test_other_services_fetch_a_ticket_with_its_comments(
    stack: Stack, service: TestedService, client: TicketsClient
) -> None:
    created = await client.create("Whole")
    path = f"/api/tickets/{created.body['id']}"
    comments = [(await client.request("POST", f"{path}/comments", json={"body": str(n)})).body for n in range(3)]
    headers = {PRINCIPAL_HEADER: Signer(stack.credentials.signing_key("search")).service_token("tickets")}
    organization_id = str(client.principal.organization_id)
    async with aiohttp.ClientSession(service.url, headers=headers) as session:

        async def fetch(organization: str) -> tuple[int, dict[str, object], object]:
            query = {"organization_id": organization}
            async with session.get(f"/internal/tickets/{created.body['id']}", params=query) as answer:
                return answer.status, await answer.json(content_type=None), answer.headers

        status, body, answered = await fetch(organization_id)
        assert status == 200
        assert body["comments"] == comments
        assert body["ticket"] == (await client.request("GET", path)).body
        assert AS_OF_HEADER in answered  # type: ignore[operator]
        assert (await fetch(str(uuid.uuid4())))[0] == 404
        assert (await fetch("mine"))[0] == 400
    query = {"organization_id": organization_id}
    async with (
        aiohttp.ClientSession(service.url) as session,
        session.get(f"/internal{path[4:]}", params=query) as answer,
    ):
        assert answer.status == 401


async def test_keys_are_made_listed_and_revoked_by_their_owner_or_an_admin(
    desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient]
) -> None:
    admin, one, other = map(client_of, await desk.organization(Role.ADMIN, Role.AGENT, Role.AGENT))
    keys = [(await client.request("POST", "/api/keys", json={"name": "k"})).body for client in (admin, one, other)]
    assert all(key["key"].startswith(key["prefix"]) and key["key"].startswith("rdk_") for key in keys)
    stored = await desk.superuser.fetchval(
        "SELECT count(*) FROM api_keys k WHERE k::text LIKE ANY($1)", [f"%{key['key'][12:]}%" for key in keys]
    )
    assert stored == 0

    async def listed(client: TicketsClient) -> list[str]:
        return [key["id"] for key in (await client.request("GET", "/api/keys")).body["keys"]]

    assert set(await listed(admin)) == {key["id"] for key in keys}
    assert await listed(one) == [keys[1]["id"]]
    assert (await one.request("DELETE", f"/api/keys/{keys[2]['id']}")).code == "key_not_found"
    assert (await one.request("DELETE", f"/api/keys/{keys[1]['id']}")).status == 204
    assert (await one.request("DELETE", f"/api/keys/{keys[1]['id']}")).status == 204, "safe to repeat"
    assert (await admin.request("DELETE", f"/api/keys/{keys[2]['id']}")).status == 204
    assert await listed(admin) == [keys[0]["id"]]


@pytest.mark.parametrize("token", ["x", "00000001-00000000000000000", "-1-1", "00000001-000000000000000G"])
async def test_a_malformed_consistency_token_is_refused(client: TicketsClient, token: str) -> None:
    answer = await client.request("GET", "/api/tickets", headers={"Relaydesk-Consistency": token})
    assert (answer.status, answer.code) == (400, "invalid_parameter")


async def test_a_token_from_the_future_is_refused(client: TicketsClient) -> None:
    now = Position.from_token((await client.create()).token)
    for token, refusal in (
        (now._replace(lsn=now.lsn + 2**40), (400, "invalid_parameter")),
        (now._replace(timeline=now.timeline + 2), (400, "invalid_parameter")),
        # What the next timeline may be, another instance may have seen before this one: come again.
        (now._replace(timeline=now.timeline + 1), (503, "service_unavailable")),
    ):
        answer = await client.request("GET", "/api/tickets", headers={"Relaydesk-Consistency": token.token()})
        assert (answer.status, answer.code) == refusal

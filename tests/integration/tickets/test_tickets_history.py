"""What was done, by whom: the history of a ticket and the audit log of an organization, over HTTP."""

import asyncio
import datetime as dt
import json
import uuid
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from infra.local.stack import Stack
from libs.common.consistency import HEADER as CONSISTENCY_HEADER
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Principal, Signer
from libs.common.models import Role
from services.tickets import people
from services.tickets.database import Database
from services.tickets.store_history import LIST_HISTORY, LIST_NEWEST_HISTORY
from tests.support.processes import TestedService
from tests.support.tickets import Answer, TicketsClient, TicketsDatabase

CREATED, COMMENTED = "ticket.created.v1", "ticket.commented.v1"
EXPLAIN = "EXPLAIN (ANALYZE, COSTS OFF, FORMAT JSON) "
INSERT_AUDIT = """
INSERT INTO audit_log (organization_id, at, actor_kind, actor_name, action)
SELECT $1, clock_timestamp() - make_interval(secs => n / 2), 'operator', '', 'user.created'
FROM generate_series(1, $2::int) AS n"""


async def history(client: TicketsClient, ticket_id: str, **query: Any) -> Answer:
    return await client.request("GET", f"/api/tickets/{ticket_id}/history", params=query)


async def pages(client: TicketsClient, path: str, **query: Any) -> list[dict[str, Any]]:
    """All entries, page by page."""
    found: list[dict[str, Any]] = []
    while True:
        answer = await client.request("GET", path, params=query)
        assert answer.status == 200, answer
        found += answer.body["entries"]
        assert len(answer.body["entries"]) <= query.get("limit", 25)
        if answer.body["next_cursor"] is None:
            assert "Link" not in answer.headers
            return found
        assert 'rel="next"' in answer.headers["Link"]
        query["cursor"] = answer.body["next_cursor"]


async def versions_made(client: TicketsClient, count: int) -> str:
    ticket_id = str((await client.create("Version 1")).body["id"])
    for version in range(1, count):
        assert (await client.update(ticket_id, version, title=f"Version {version + 1}")).status == 200
    return ticket_id


async def test_every_version_tells_who_changed_what(
    desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient]
) -> None:
    one, two = map(client_of, await desk.organization(Role.ADMIN, Role.AGENT))
    ticket = (await one.create("Printer")).body
    me = str(two.principal.user_id)
    await two.update(ticket["id"], 1, status="pending", assigned_to=me, title="Printer")
    comment = (await two.request("POST", f"/api/tickets/{ticket['id']}/comments", json={"body": "x"})).body
    await one.request(
        "PATCH", "/api/tickets/bulk", json={"tickets": [{"id": ticket["id"], "version": 3, "assigned_to": None}]}
    )
    found = (await one.request("GET", f"/api/tickets/{ticket['id']}")).body
    answer = await history(one, ticket["id"], sort="version")
    assert answer.status == 200
    actors = [{"id": str(c.principal.user_id), "kind": "session", "name": "Test"} for c in (one, two, two, one)]
    entries = answer.body["entries"]
    assert entries == [
        {"version": 1, "at": ticket["created_at"], "type": CREATED, "actor": actors[0], "changes": {}},
        {
            "version": 2,
            "at": entries[1]["at"],
            "type": "ticket.status_changed.v1",
            "actor": actors[1],
            "changes": {"status": ["open", "pending"], "assigned_to": [None, me]},
        },
        {
            "version": 3,
            "at": comment["created_at"],
            "type": COMMENTED,
            "actor": actors[2],
            "changes": {"comment_id": [None, comment["id"]]},
        },
        {
            "version": 4,
            "at": found["updated_at"],
            "type": "ticket.assigned.v1",
            "actor": actors[3],
            "changes": {"assigned_to": [me, None]},
        },
    ]
    newest = await history(one, ticket["id"])
    assert newest.body == {"entries": entries[::-1], "next_cursor": None}


async def test_history_goes_page_by_page_in_both_orders_while_versions_are_added(client: TicketsClient) -> None:
    ticket_id = await versions_made(client, 7)
    path = f"/api/tickets/{ticket_id}/history"
    for sort, expected in (("version", [1, 2, 3, 4, 5, 6, 7]), ("-version", [7, 6, 5, 4, 3, 2, 1])):
        for limit in (1, 3, 7, 100):
            assert [e["version"] for e in await pages(client, path, sort=sort, limit=limit)] == expected
    first = await history(client, ticket_id, limit=4)
    assert (await client.update(ticket_id, 7, title="Meanwhile")).status == 200
    rest = await history(client, ticket_id, limit=100, cursor=first.body["next_cursor"])
    assert [e["version"] for e in rest.body["entries"]] == [3, 2, 1]


async def test_a_history_that_is_not_there_is_a_ticket_that_is_not_there(
    desk: TicketsDatabase, client: TicketsClient, client_of: Callable[[Principal], TicketsClient]
) -> None:
    (stranger,) = await desk.organization()
    foreign = (await client_of(stranger).create()).body["id"]
    for ticket_id in (foreign, str(uuid.uuid4()), "1"):
        answer = await history(client, ticket_id)
        assert (answer.status, answer.code) == (404, "ticket_not_found")


@pytest.mark.parametrize(
    "query", [{"sort": "at"}, {"limit": 0}, {"limit": 101}, {"cursor": "x"}, {"cursor": ""}, {"cursor": "A" * 22}]
)
async def test_a_malformed_parameter_is_refused(client: TicketsClient, query: dict[str, Any]) -> None:
    ticket_id = (await client.create()).body["id"]
    answers = [await history(client, ticket_id, **query)]
    if "sort" not in query:
        answers.append(await client.request("GET", "/api/audit", params=query))
    assert {(answer.status, answer.code) for answer in answers} == {(400, "invalid_parameter")}


async def test_a_cursor_belongs_to_its_list(client: TicketsClient) -> None:
    one, two = await versions_made(client, 3), await versions_made(client, 3)
    cursor = (await history(client, one, limit=1)).body["next_cursor"]
    for answer in (
        await history(client, two, cursor=cursor),
        await history(client, one, cursor=cursor, sort="version"),
    ):
        assert (answer.status, answer.code) == (400, "invalid_parameter")


async def test_a_history_is_read_from_the_partitions_of_its_lifetime_only(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    ticket_id = await versions_made(client, 2)
    partitions = await desk.superuser.fetchval(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'ticket_history'::regclass"
    )
    assert partitions > 2
    for statement, start in ((LIST_HISTORY, 0), (LIST_NEWEST_HISTORY, 9)):
        arguments = client.principal.organization_id, uuid.UUID(ticket_id), start, 10
        async with desk.superuser.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            plan = json.loads(await connection.fetchval(EXPLAIN + statement, *arguments))
        executed = [node for node in nodes(plan[0]["Plan"]) if node.get("Relation Name", "").startswith("ticket_hist")]
        read = {node["Relation Name"] for node in executed if node["Actual Loops"] > 0}
        lifetime = {dt.datetime.now(dt.UTC) + dt.timedelta(days=days) for days in (-1, 0, 1)}
        assert read <= {f"ticket_history_{moment:%Y%m01}" for moment in lifetime}
        assert all(node["Node Type"].startswith("Index") for node in executed if node["Actual Loops"] > 0)


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


async def audit(client: TicketsClient, **query: Any) -> list[dict[str, Any]]:
    """A page of the log that includes everything up to now: a write tells the client a token."""
    await client.create()
    answer = await client.request("GET", "/api/audit", params=query)
    assert answer.status == 200, answer
    entries: list[dict[str, Any]] = answer.body["entries"]
    return entries


async def test_keys_are_audited_when_they_are_made_and_once_when_they_are_revoked(
    desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient]
) -> None:
    admin, agent = map(client_of, await desk.organization(Role.ADMIN, Role.AGENT))
    key = (await agent.request("POST", "/api/keys", json={"name": "Mine"})).body
    for _ in range(2):
        assert (await admin.request("DELETE", f"/api/keys/{key['id']}")).status == 204
    assert (await agent.request("DELETE", f"/api/keys/{uuid.uuid4()}")).status == 404
    entries = await audit(admin)
    assert [(entry["action"], entry["actor"]["id"]) for entry in entries] == [
        ("key.revoked", str(admin.principal.user_id)),
        ("key.created", str(agent.principal.user_id)),
    ]
    for entry in entries:
        assert entry["target_id"] == key["id"]
        assert entry["details"] == {"name": "Mine", "prefix": key["prefix"]}
        assert entry["actor"]["kind"] == "session"
    assert key["key"] not in json.dumps(entries)
    assert [entry["action"] for entry in await audit(admin, action="key.created")] == ["key.created"]


async def test_a_clear_of_the_cache_is_audited_for_services_only(
    stack: Stack, desk: TicketsDatabase, service: TestedService, client_of: Callable[[Principal], TicketsClient]
) -> None:
    admin, other = map(client_of, [(await desk.organization())[0] for _ in range(2)])
    organization = str(admin.principal.organization_id)
    actor = {"id": str(admin.principal.user_id), "kind": "session", "name": "Ann"}
    body = {"organization_id": organization, "actor": actor, "details": {"cleared": "tag", "value": "search"}}
    path = "/internal/audit/cache-clear"
    refused = await admin.request("POST", path, json=body)
    assert (refused.status, refused.code) == (401, "authentication_required")
    token = Signer(stack.credentials.signing_key("gateway")).service_token("tickets")
    async with aiohttp.ClientSession(service.url, headers={PRINCIPAL_HEADER: token}) as session:
        for wrong in ({}, body | {"organization_id": "x"}, body | {"action": "key.revoked"}):
            async with session.post(path, json=wrong) as answer:
                assert answer.status == 422
        async with session.post(path, json=body) as answer:
            assert answer.status == 204
            newest = {CONSISTENCY_HEADER: answer.headers[CONSISTENCY_HEADER]}
    (entry,) = (await admin.request("GET", "/api/audit", headers=newest)).body["entries"]
    assert (entry["action"], entry["actor"], entry["details"]) == ("cache.cleared", actor, body["details"])
    assert entry["target_id"] == organization
    assert await audit(other) == []


async def test_a_creation_that_is_repeated_is_audited_once(client: TicketsClient) -> None:
    for _ in range(2):
        headers = {"Idempotency-Key": "again"}
        assert (await client.request("POST", "/api/keys", json={"name": "k"}, headers=headers)).status == 201
    assert len(await audit(client)) == 1


async def test_the_audit_log_is_for_admins_of_the_organization(
    desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient]
) -> None:
    admin, agent = map(client_of, await desk.organization(Role.ADMIN, Role.AGENT))
    (stranger,) = await desk.organization()
    await admin.request("POST", "/api/keys", json={"name": "k"})
    refused = await agent.request("GET", "/api/audit")
    assert (refused.status, refused.code) == (403, "permission_denied")
    assert await audit(client_of(stranger)) == []
    assert len(await audit(admin)) == 1


async def test_an_organization_its_users_and_sign_ins_are_audited(
    stack: Stack, desk: TicketsDatabase, service: TestedService, client_of: Callable[[Principal], TicketsClient]
) -> None:
    slug = f"org-{uuid.uuid4().hex[:8]}"
    new = [people.NewUser(f"{name}@{slug}.example", role, f"secret of {name}") for name, role in
           (("ann", Role.ADMIN), ("bob", Role.AGENT))]  # fmt: skip
    async with Database.open(desk.settings()) as database:
        organization, users, key = await people.provision(database, slug=slug, name="Org", users=new, key_name="k")
    token = Signer(stack.credentials.signing_key("gateway")).service_token("tickets")
    async with aiohttp.ClientSession(service.url, headers={PRINCIPAL_HEADER: token}) as session:

        async def sign_in(email: str, password: str) -> int:
            body = {"organization": slug, "email": email, "password": password}
            async with session.post("/internal/sign-in", json=body) as answer:
                return answer.status

        assert await sign_in(new[0].email.upper(), new[0].password) == 200
        assert await sign_in(new[1].email, "wrong password") == 401
        assert await sign_in("nobody@example.com", "my password by mistake") == 401
    ann = Principal(
        organization_id=organization.id,
        user_id=users[0].id,
        name="Ann",
        role=Role.ADMIN,
        credential="session",
        credential_id="x",
    )
    entries = await audit(client_of(ann))
    told = [(e["action"], e["actor"], e["target_id"], e["details"]) for e in reversed(entries)]
    operator = {"id": None, "kind": "operator", "name": ""}
    unknown = {"id": None, "kind": "unknown", "name": ""}
    assert told == [
        ("organization.created", operator, str(organization.id), {"slug": slug, "name": "Org"}),
        ("user.created", operator, str(users[0].id), {"email": new[0].email, "role": "admin"}),
        ("user.created", operator, str(users[1].id), {"email": new[1].email, "role": "agent"}),
        ("key.created", operator, str(key.id), {"name": "k", "prefix": key.prefix}),
        (
            "sign_in.succeeded",
            {"id": str(users[0].id), "kind": "password", "name": users[0].name},
            str(users[0].id),
            {},
        ),
        ("sign_in.failed", unknown, str(users[1].id), {}),
        ("sign_in.failed", unknown, None, {}),
    ]
    stored = await desk.superuser.fetchval(
        "SELECT string_agg(a::text, ' ') FROM audit_log a WHERE organization_id = $1", organization.id
    )
    for secret in (key.key or "", *(user.password for user in new), "wrong password", "by mistake"):
        assert secret not in stored


async def test_what_is_refused_is_not_audited(desk: TicketsDatabase) -> None:
    """The entry stands in the transaction of what it tells of."""
    slug = f"org-{uuid.uuid4().hex[:8]}"
    users = [people.NewUser("a@example.com", Role.ADMIN, "x")]
    count = "SELECT count(*) FROM audit_log"
    async with Database.open(desk.settings()) as database:
        await people.provision(database, slug=slug, name="Org", users=users, key_name="k")
        before = await desk.superuser.fetchval(count)
        with pytest.raises(people.SlugTaken):
            await people.provision(database, slug=slug, name="Org", users=users, key_name="k")
        assert await desk.superuser.fetchval(count) == before


async def test_the_audit_log_goes_page_by_page_while_entries_are_added(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    """Two entries share each moment."""
    await desk.superuser.execute(INSERT_AUDIT, client.principal.organization_id, 40)
    everything = await audit(client, limit=100)
    assert len(everything) == 40
    order = [(entry["at"], entry["id"]) for entry in everything]
    assert order == sorted(order, reverse=True)
    for query in ({"limit": 7}, {"limit": 7, "action": "user.created"}, {"limit": 40}):
        adding = asyncio.create_task(client.request("POST", "/api/keys", json={"name": "k"}))
        found = await pages(client, "/api/audit", **query)
        await adding
        assert [entry for entry in found if entry["action"] == "user.created"] == everything

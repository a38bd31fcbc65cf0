"""`/api/admin/cache`: what it tells, what it clears, who may, and that it is audited; through two real gateways."""

import asyncio
import json
import sys
import uuid
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from infra.local.stack import Stack
from tests.support.clients import Tenant
from tests.support.desk import Desk, Reply, problem

TOKEN = "Relaydesk-Consistency"
CLEAR = "/api/admin/cache/clear"


async def read(desk: Desk, target: str, *, gateway: int = 0, who: Tenant | None = None) -> str:
    """Which level answers."""
    reply = await desk.ask("GET", target, who=who or desk.acme, gateway=gateway)
    assert reply.status == 200, reply
    return reply.headers["relaydesk-cache"]


async def into_l1(desk: Desk, target: str, *, who: Tenant | None = None) -> None:
    """Of both gateways: what was written just now is still being invalidated by its event."""
    async with asyncio.timeout(60):
        for gateway in (0, 1):
            while await read(desk, target, gateway=gateway, who=who) != "l1":
                await asyncio.sleep(0.01)


async def settled(desk: Desk, targets: list[str], *, who: Tenant | None = None) -> None:
    """All of them in L1 at once, as no event of theirs is on its way any more."""
    async with asyncio.timeout(60):
        while True:
            for target in targets:
                await into_l1(desk, target, who=who)
            if {await read(desk, target, gateway=gateway, who=who) for target in targets for gateway in (0, 1)} == {
                "l1"
            }:
                return


async def is_gone(desk: Desk, target: str) -> None:
    """At the gateway that cleared at once, elsewhere within 2 s."""
    assert await read(desk, target) in {"miss", "l2"}
    async with asyncio.timeout(2):
        while await read(desk, target, gateway=1) == "l1":
            await asyncio.sleep(0.01)


async def create(desk: Desk, tenant: Tenant) -> str:
    reply = await desk.ask("POST", "/api/tickets", {"title": "A printer"}, who=tenant)
    assert reply.status == 201, reply
    return str(reply.json()["id"])


async def clear(desk: Desk, body: Any = None, *, who: Tenant | None = None) -> Reply:
    reply = await desk.ask("POST", CLEAR, body, who=who or desk.acme)
    assert reply.status == 200, reply
    return reply


async def audited(desk: Desk, token: str) -> list[dict[str, Any]]:
    reply = await desk.ask("GET", "/api/audit?action=cache.cleared", None, {TOKEN: token}, who=desk.acme)
    assert reply.status == 200, reply
    return list(reply.json()["entries"])


async def agent(desk: Desk) -> dict[str, str | bytes | None]:
    """The headers of an agent's session."""
    who = desk.acme.users[1]
    assert who["role"] == "agent"
    body = {"organization": desk.acme.slug, "email": who["email"], "password": who["password"]}
    reply = await desk.ask("POST", "/api/session", body)
    assert reply.status == 201, reply
    return {"Cookie": reply.headers["set-cookie"].partition(";")[0], "X-CSRF-Token": reply.json()["csrf_token"]}


@pytest_asyncio.fixture(loop_scope="session")
async def ticket(desk: Desk) -> str:
    return await create(desk, desk.acme)


async def test_everything_of_the_organization_is_cleared_and_nothing_of_another(desk: Desk, ticket: str) -> None:
    targets = [f"/api/tickets/{ticket}", f"/api/tickets/{ticket}/comments", "/api/tickets", "/api/search?q=printer"]
    theirs = f"/api/tickets/{await create(desk, desk.other)}"
    nothing: tuple[dict[str, str] | None, ...] = (None, {})
    for body in nothing:
        await settled(desk, targets)
        await settled(desk, [theirs], who=desk.other)
        reply = await clear(desk, body)
        assert reply.json() == {"cleared": "organization", "value": None, "removed": None}
        assert reply.headers["cache-control"] == "no-store"
        for target in targets:
            await is_gone(desk, target)
        assert [await read(desk, theirs, gateway=gateway, who=desk.other) for gateway in (0, 1)] == ["l1", "l1"]


async def test_a_tag_clears_what_carries_it(desk: Desk, ticket: str) -> None:
    of_ticket = [f"/api/tickets/{ticket}", f"/api/tickets/{ticket}/comments", f"/api/tickets/{ticket}/history"]
    showing = [*of_ticket, "/api/tickets"]
    by_tag = {"tickets": ["/api/tickets"], "search": ["/api/search?q=printer"], f"ticket:{ticket}": showing}
    targets = [target for found in by_tag.values() for target in found]
    for tag, gone in by_tag.items():
        await settled(desk, targets)
        assert (await clear(desk, {"tag": tag})).json() == {"cleared": "tag", "value": tag, "removed": None}
        for target in gone:
            await is_gone(desk, target)
        assert {await read(desk, target) for target in targets if target not in gone} == {"l1"}


async def test_a_prefix_clears_what_begins_so_for_every_role(desk: Desk, ticket: str) -> None:
    session = await agent(desk)
    targets = [f"/api/tickets/{ticket}", f"/api/tickets/{ticket}/comments"]
    await settled(desk, [*targets, "/api/tickets", "/api/search?q=printer"])
    async with asyncio.timeout(30):
        while (await desk.ask("GET", targets[0], None, session)).headers["relaydesk-cache"] != "l1":
            await asyncio.sleep(0.01)
    reply = await clear(desk, {"prefix": f"/api/tickets/{ticket}"})
    told = reply.json()
    assert (told["cleared"], told["value"]) == ("prefix", f"/api/tickets/{ticket}")
    assert told["removed"] >= 3
    assert (await desk.ask("GET", targets[0], None, session)).headers["relaydesk-cache"] == "miss"
    for target in targets:
        await is_gone(desk, target)
    assert {await read(desk, target) for target in ("/api/tickets", "/api/search?q=printer")} == {"l1"}
    assert (await clear(desk, {"prefix": "/api/search?q=prin"})).json()["removed"] == 1
    assert await read(desk, "/api/search?q=printer") == "miss"


async def test_a_ticket_of_another_organization_cannot_be_cleared(desk: Desk) -> None:
    theirs = await create(desk, desk.other)
    target = f"/api/tickets/{theirs}"
    await settled(desk, [target], who=desk.other)
    for ticket in (theirs, str(uuid.uuid4())):
        reply = await desk.ask("POST", CLEAR, {"tag": f"ticket:{ticket}"}, who=desk.acme)
        assert problem(reply) == (404, "ticket_not_found")
    await clear(desk, {"prefix": target})
    assert [await read(desk, target, gateway=gateway, who=desk.other) for gateway in (0, 1)] == ["l1", "l1"]


async def test_only_admins_may(desk: Desk) -> None:
    session = await agent(desk)
    assert problem(await desk.ask("GET", "/api/admin/cache", None, session)) == (403, "permission_denied")
    for body in (None, {}, {"tag": "tickets"}, {"unknown": 1}):
        assert problem(await desk.ask("POST", CLEAR, body, session)) == (403, "permission_denied")
    assert problem(await desk.ask("POST", CLEAR, {})) == (401, "authentication_required")
    assert problem(await desk.ask("GET", "/api/admin/cache")) == (401, "authentication_required")


@pytest.mark.parametrize(
    "body",
    [
        {"tag": "org:1"},
        {"tag": "ticket:1"},
        {"tag": "tickets\n"},
        {"tag": None},
        {"tag": ""},
        {"prefix": None},
        {"prefix": ""},
        {"prefix": "/api/\n"},
        {"prefix": "/api/\x00"},
        {"prefix": "tickets"},
        {"prefix": "/api/" + "x" * 2000},
        {"tag": "tickets", "prefix": "/api/"},
        {"everything": True},
        [],
        "x",
    ],
)
async def test_what_is_not_understood_clears_nothing(desk: Desk, ticket: str, body: Any) -> None:
    await settled(desk, [f"/api/tickets/{ticket}"])
    assert problem(await desk.ask("POST", CLEAR, body, who=desk.acme)) == (422, "validation_failed")
    malformed = await desk.ask("POST", CLEAR, b"{", {"Content-Type": "application/json"}, who=desk.acme)
    assert problem(malformed) == (400, "malformed_json")
    text = await desk.ask("POST", CLEAR, b"tickets", {"Content-Type": "text/plain"}, who=desk.acme)
    assert problem(text) == (415, "unsupported_media_type")
    assert await read(desk, f"/api/tickets/{ticket}") == "l1"


async def test_every_clear_is_audited_and_its_token_shows_it(desk: Desk) -> None:
    for body, details in (
        ({}, {"cleared": "organization"}),
        ({"tag": "search"}, {"cleared": "tag", "value": "search"}),
        ({"prefix": "/api/tickets?a=b"}, {"cleared": "prefix", "value": "/api/tickets?a=b"}),
    ):
        reply = await clear(desk, body)
        entry = (await audited(desk, reply.headers[TOKEN.lower()]))[0]
        assert entry["action"] == "cache.cleared"
        assert entry["details"] == details
        assert entry["target_id"] == desk.acme.organization_id
        assert entry["actor"]["kind"] == "api_key"
        assert entry["actor"]["id"] == desk.acme.users[0]["id"]
    others = await desk.ask("GET", "/api/audit?action=cache.cleared", who=desk.other)
    assert others.json()["entries"] == []


async def test_what_cannot_be_audited_is_not_cleared(desk: Desk, ticket: str, database: asyncpg.Pool) -> None:
    target = f"/api/tickets/{ticket}"
    await settled(desk, [target])
    await database.execute("REVOKE INSERT ON audit_log FROM tickets_app")
    try:
        reply = await desk.ask("POST", CLEAR, {}, who=desk.acme)
    finally:
        await database.execute("GRANT INSERT ON audit_log TO tickets_app")
    assert problem(reply) == (503, "service_unavailable")
    assert reply.headers["retry-after"]
    assert [await read(desk, target, gateway=gateway) for gateway in (0, 1)] == ["l1", "l1"]


async def test_a_clear_that_the_cache_does_not_take_is_503(desk: Desk, stack: Stack) -> None:
    async with Redis.from_url(stack.cache_redis_url) as redis:
        await redis.config_set("min-replicas-to-write", 1)
        try:
            for body in ({}, {"tag": "tickets"}, {"prefix": "/api/"}):
                reply = await desk.ask("POST", CLEAR, body, who=desk.acme)
                assert problem(reply) == (503, "service_unavailable")
        finally:
            await redis.config_set("min-replicas-to-write", 0)


async def test_the_audit_route_is_for_services_only(desk: Desk) -> None:
    body = {
        "organization_id": desk.acme.organization_id,
        "actor": {"id": None, "kind": "x", "name": "x"},
        "details": {},
    }
    for path in ("/internal/audit/cache-clear", "/api/%2e%2e/internal/audit/cache-clear"):
        assert (await desk.ask("POST", path, body, who=desk.acme)).status == 404


async def test_the_figures_tell_of_the_process_and_of_the_shared_cache(desk: Desk, ticket: str) -> None:
    target = f"/api/tickets/{ticket}"
    await settled(desk, [target])
    before = (await desk.ask("GET", "/api/admin/cache", who=desk.acme)).json()
    for _ in range(10):
        assert await read(desk, target) == "l1"
    reply = await desk.ask("GET", "/api/admin/cache", who=desk.acme)
    assert reply.headers["cache-control"] == "no-store"
    after = reply.json()
    assert after["process"] == before["process"]
    assert after["l1"] == {"entries": after["l1"]["entries"], "limit": 500, "listening": True}
    assert 1 <= after["l1"]["entries"] <= 500
    assert after["l2"]["keys"] > 2
    assert after["l2"]["used_bytes"] > 0
    assert after["l2"]["evicted"] >= 0
    assert after["loads_under_way"] == 0
    reads, earlier = ({one["key_type"]: one for one in told["reads"]} for told in (after, before))
    assert reads["ticket"]["l1_hits"] == earlier["ticket"]["l1_hits"] + 10
    assert reads["ticket"]["misses"] == earlier["ticket"]["misses"] >= 1
    hits = reads["ticket"]["l1_hits"] + reads["ticket"]["l2_hits"]
    assert reads["ticket"]["hit_rate"] == pytest.approx(hits / (hits + reads["ticket"]["misses"]), abs=0.0001)
    assert 0 < after["hit_rate"] < 1


async def test_the_hottest_keys_are_those_of_the_callers_organization(desk: Desk, ticket: str) -> None:
    target, theirs = f"/api/tickets/{ticket}", f"/api/tickets/{await create(desk, desk.other)}"
    await settled(desk, [target])
    await settled(desk, [theirs], who=desk.other)
    for number in range(25):
        await read(desk, f"/api/tickets?limit={number + 1}")
    for _ in range(60):
        await read(desk, target)
        await read(desk, theirs, who=desk.other)
    hottest = (await desk.ask("GET", "/api/admin/cache", who=desk.acme)).json()["hottest"]
    assert len(hottest) == 20
    assert (hottest[0]["path"], hottest[0]["role"]) == (target, "admin")
    assert hottest[0]["hits"] >= 60
    assert [one["hits"] for one in hottest] == sorted((one["hits"] for one in hottest), reverse=True)
    assert theirs not in str(hottest)
    assert desk.other.organization_id not in str(hottest)


async def test_the_command_line_shows_and_clears_it(desk: Desk, ticket: str) -> None:
    async def relaydesk(*arguments: str) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from cli.app import main; main()", "cache", *arguments, "--json"),
            *("--url", desk.gateways[0].url, "--api-key", desk.acme.key),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return dict(json.loads(out))

    target = f"/api/tickets/{ticket}"
    await settled(desk, [target])
    assert target in [one["path"] for one in (await relaydesk("stats"))["hottest"]]
    assert (await relaydesk("clear", "--prefix", target, "--yes"))["removed"] >= 1
    await is_gone(desk, target)


async def test_without_the_shared_cache_the_figures_say_so(desk: Desk, stack: Stack) -> None:
    stack.pause("cache-redis")
    try:
        told = (await desk.ask("GET", "/api/admin/cache", who=desk.acme)).json()
    finally:
        stack.resume("cache-redis")
    assert told["l2"] is None

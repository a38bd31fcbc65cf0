"""Sign-in, sessions and API keys, through real gateways."""

import asyncio
import re
import time
import uuid
from typing import Any

from redis.asyncio import Redis

from infra.local.stack import Stack
from tests.support.clients import Tenant, provision
from tests.support.desk import Desk, Reply, problem
from tests.support.processes import running_service
from tests.support.realtime import until

REVOKED_SECONDS = 2.0


async def sign_in(desk: Desk, tenant: Tenant, *, user: int = 0, gateway: int = 0, cookie: str | None = None) -> Reply:
    who = tenant.users[user]
    body = {"organization": tenant.slug, "email": who["email"], "password": who["password"]}
    return await desk.ask("POST", "/api/session", body, {"Cookie": cookie}, gateway=gateway)


async def session(desk: Desk, tenant: Tenant, **options: Any) -> dict[str, str | bytes | None]:
    """The headers of a new session."""
    reply = await sign_in(desk, tenant, **options)
    assert reply.status == 201, reply
    return {"Cookie": reply.headers["set-cookie"].partition(";")[0], "X-CSRF-Token": reply.json()["csrf_token"]}


async def create_key(desk: Desk, headers: dict[str, str | bytes | None], name: str = "a key") -> dict[str, str]:
    reply = await desk.ask("POST", "/api/keys", {"name": name}, headers)
    assert reply.status == 201, reply
    told: dict[str, str] = reply.json()
    return told


def bearer(key: str) -> dict[str, str | bytes | None]:
    return {"Authorization": f"Bearer {key}"}


async def refused_within(desk: Desk, headers: dict[str, str | bytes | None], *, gateway: int) -> None:
    deadline = time.monotonic() + REVOKED_SECONDS
    while (reply := await desk.ask("GET", "/api/session", None, headers, gateway=gateway)).status != 401:
        assert time.monotonic() < deadline, "still accepted"
        await asyncio.sleep(0.05)
    assert problem(reply) == (401, "authentication_required")


async def test_signing_in_gives_a_session_in_a_guarded_cookie(desk: Desk) -> None:
    reply = await sign_in(desk, desk.acme)
    assert reply.status == 201
    assert reply.headers["cache-control"] == "no-store"
    told = reply.json()
    assert told["organization"]["id"] == desk.acme.organization_id
    assert told["user"]["email"] == desk.acme.users[0]["email"]
    name_and_value, *attributes = [part.strip() for part in reply.headers["set-cookie"].split(";")]
    assert re.fullmatch(r"relaydesk_session=[\w-]{43}", name_and_value)
    lowered = {attribute.lower() for attribute in attributes}
    assert {"httponly", "samesite=lax", "path=/"} <= lowered
    assert "secure" not in lowered  # GATEWAY_COOKIE_SECURE=false: plain HTTP on loopback
    assert not any(attribute.startswith("domain=") for attribute in lowered)
    (age,) = (int(a.partition("=")[2]) for a in lowered if a.startswith("max-age="))
    assert 12 * 3600 - 60 < age <= 12 * 3600
    for gateway in (0, 1):
        who = await desk.ask("GET", "/api/session", None, {"Cookie": name_and_value}, gateway=gateway)
        assert who.status == 200
        assert who.json()["credential"] == "session"
        assert who.json()["csrf_token"] == told["csrf_token"]


async def test_a_cookie_is_secure_unless_told_otherwise(desk: Desk, stack: Stack, tmp_path: Any) -> None:
    urls = {"GATEWAY_TICKETS_URL": desk.tickets.url, "GATEWAY_COOKIE_SECURE": "true"}
    async with running_service(stack, "gateway", tmp_path / "gateway.log", script=(), **urls) as secure:
        reply = await sign_in(Desk([secure], desk.tickets, [desk.acme, desk.other], []), desk.acme)
    assert "secure" in reply.headers["set-cookie"].lower().replace(" ", "").split(";")


async def test_what_is_wrong_with_a_sign_in_is_not_told(desk: Desk) -> None:
    right = {
        "organization": desk.acme.slug,
        "email": desk.acme.users[0]["email"],
        "password": desk.acme.users[0]["password"],
    }
    answers = [
        await desk.ask("POST", "/api/session", right | wrong)
        for wrong in (
            {"password": "wrong"},
            {"password": desk.acme.users[1]["password"]},
            {"email": "nobody@example.com"},
            {"organization": "nowhere"},
            {"organization": desk.other.slug},
            {"email": desk.other.users[0]["email"]},
        )
    ]
    bodies = []
    for answer in answers:
        assert problem(answer) == (401, "invalid_credentials")
        assert "set-cookie" not in answer.headers
        bodies.append({name: value for name, value in answer.json().items() if name != "trace_id"})
    assert all(body == bodies[0] for body in bodies)
    assert len({tuple(sorted(set(answer.headers) - {"date"})) for answer in answers}) == 1


async def test_a_session_changes_nothing_without_its_csrf_token(desk: Desk) -> None:
    headers, other = await session(desk, desk.acme), await session(desk, desk.acme)
    for token in (None, "", "wrong", other["X-CSRF-Token"]):
        for method, path, body in (
            ("POST", "/api/tickets", {"title": "Forged"}),
            ("POST", "/api/keys", {"name": "Forged"}),
            ("POST", "/api/realtime/token", None),
            ("DELETE", "/api/session", None),
        ):
            reply = await desk.ask(method, path, body, headers | {"X-CSRF-Token": token})
            assert problem(reply) == (403, "csrf_token_invalid"), (method, path)
    assert (await desk.ask("GET", "/api/session", None, headers | {"X-CSRF-Token": None})).status == 200
    assert (await desk.ask("POST", "/api/tickets", {"title": "Mine"}, headers)).status == 201


async def test_signing_in_again_ends_the_session_before(desk: Desk, stack: Stack) -> None:
    """No session fixation; and like every credential that ends, it is announced to whoever holds sockets open."""
    old = await session(desk, desk.acme)
    assert (await desk.ask("GET", "/api/session", None, old)).status == 200
    async with Redis.from_url(stack.redis_url) as redis:
        announced = await redis.xlen("revocations")
        new = await session(desk, desk.acme, cookie=str(old["Cookie"]))
        assert await redis.xlen("revocations") == announced + 1
    assert new["Cookie"] != old["Cookie"]
    assert new["X-CSRF-Token"] != old["X-CSRF-Token"]
    assert problem(await desk.ask("GET", "/api/session", None, old)) == (401, "authentication_required")
    await refused_within(desk, old, gateway=1)
    assert (await desk.ask("GET", "/api/session", None, new)).status == 200


async def test_a_cookie_somebody_else_chose_is_never_taken_over(desk: Desk) -> None:
    chosen = "relaydesk_session=" + "a" * 43
    headers = await session(desk, desk.acme, cookie=chosen)
    assert headers["Cookie"] != chosen
    assert (await desk.ask("GET", "/api/session", None, {"Cookie": chosen})).status == 401


async def test_signing_out_ends_the_session_everywhere(desk: Desk) -> None:
    headers = await session(desk, desk.acme)
    for gateway in (0, 1):
        assert (await desk.ask("GET", "/api/session", None, headers, gateway=gateway)).status == 200
    reply = await desk.ask("DELETE", "/api/session", None, headers)
    assert reply.status == 204
    assert 'relaydesk_session=""' in reply.headers["set-cookie"]
    assert "max-age=0" in reply.headers["set-cookie"].lower()
    assert (await desk.ask("GET", "/api/session", None, headers)).status == 401, "here at once"
    await refused_within(desk, headers, gateway=1)


async def test_redis_knows_no_cookie_and_no_password(desk: Desk, stack: Stack) -> None:
    headers = await session(desk, desk.acme)
    token = str(headers["Cookie"]).partition("=")[2]
    async with Redis.from_url(stack.redis_url) as redis:
        sessions = [key async for key in redis.scan_iter("session:*")]
        assert sessions
        for key in sessions:
            value = await redis.get(key) or b""
            assert token.encode() not in key + value
            assert desk.acme.users[0]["password"].encode() not in value
            assert 0 < await redis.ttl(key) <= 12 * 3600


async def test_an_api_key_works_until_it_is_revoked_also_at_another_gateway(desk: Desk) -> None:
    key = await create_key(desk, await session(desk, desk.acme))
    assert key["key"].startswith("rdk_")
    assert key["key"].startswith(key["prefix"])
    assert len(key["prefix"]) < 16
    for gateway in (0, 1):
        who = await desk.ask("GET", "/api/session", None, bearer(key["key"]), gateway=gateway)
        assert who.status == 200
        assert who.json()["credential"] == "api_key"
        assert "csrf_token" not in who.json() or who.json()["csrf_token"] is None
    listed = await desk.ask("GET", "/api/keys", who=desk.acme)
    assert key["id"] in {one["id"] for one in listed.json()["keys"]}
    assert key["key"] not in listed.body.decode(), "told once and never again"
    # The id in upper case names the same key, and the gateway that is told forgets it at once.
    assert (await desk.ask("DELETE", f"/api/keys/{key['id'].upper()}", who=desk.acme)).status == 204
    assert problem(await desk.ask("GET", "/api/session", None, bearer(key["key"]))) == (401, "authentication_required")
    await refused_within(desk, bearer(key["key"]), gateway=1)
    assert (await desk.ask("DELETE", f"/api/keys/{key['id']}", who=desk.acme)).status == 204, "safe to repeat"
    assert key["id"] not in {one["id"] for one in (await desk.ask("GET", "/api/keys", who=desk.acme)).json()["keys"]}


async def test_a_key_revoked_in_any_spelling_is_forgotten_at_once(desk: Desk) -> None:
    key = await create_key(desk, await session(desk, desk.acme))
    assert (await desk.ask("GET", "/api/session", None, bearer(key["key"]))).status == 200
    assert (await desk.ask("DELETE", f"/api/keys/{uuid.UUID(key['id']).hex}", who=desk.acme)).status == 204
    assert (await desk.ask("GET", "/api/session", None, bearer(key["key"]))).status == 401


async def test_an_agent_neither_sees_nor_revokes_another_users_key(desk: Desk) -> None:
    agent, colleague = await session(desk, desk.acme, user=1), await session(desk, desk.acme, user=2)
    mine, theirs = await create_key(desk, agent, "mine"), await create_key(desk, colleague, "theirs")
    listed = {one["id"] for one in (await desk.ask("GET", "/api/keys", None, agent)).json()["keys"]}
    assert mine["id"] in listed
    assert theirs["id"] not in listed
    assert {one["user_id"] for one in (await desk.ask("GET", "/api/keys", None, agent)).json()["keys"]} == {
        desk.acme.users[1]["id"]
    }
    for headers in (agent, bearer(mine["key"])):
        reply = await desk.ask("DELETE", f"/api/keys/{theirs['id']}", None, headers)
        assert problem(reply) == (404, "key_not_found")
    assert (await desk.ask("GET", "/api/session", None, bearer(theirs["key"]))).status == 200
    everybody = {one["id"] for one in (await desk.ask("GET", "/api/keys", who=desk.acme)).json()["keys"]}
    assert {mine["id"], theirs["id"]} <= everybody, "an admin sees all of the organization's"
    assert (await desk.ask("DELETE", f"/api/keys/{theirs['id']}", who=desk.acme)).status == 204
    await refused_within(desk, bearer(theirs["key"]), gateway=0)


async def test_only_a_session_can_be_signed_out(desk: Desk) -> None:
    reply = await desk.ask("DELETE", "/api/session", who=desk.acme)
    assert problem(reply) == (403, "permission_denied")


async def test_a_realtime_token_is_short_lived_and_never_stored(desk: Desk) -> None:
    reply = await desk.ask("POST", "/api/realtime/token", who=desk.acme)
    assert reply.status == 200
    assert reply.headers["cache-control"] == "no-store"
    told = reply.json()
    assert told["token"].count(".") == 2
    assert told["url"].startswith("http://")


async def test_no_secret_appears_in_any_log(desk: Desk, stack: Stack) -> None:
    """The processes log at debug level here; whatever was sent and told is looked for."""
    tenant = await provision(stack)
    body_text = f"body-{uuid.uuid4().hex}"
    headers = await session(desk, tenant)
    wrong_password, wrong_key = f"wrong-{uuid.uuid4().hex}", f"rdk_{uuid.uuid4().hex}"
    credentials = {"organization": tenant.slug, "email": tenant.users[0]["email"], "password": wrong_password}
    assert (await desk.ask("POST", "/api/session", credentials)).status == 401
    assert (await desk.ask("POST", "/api/session", credentials | {"password": [wrong_password]})).status == 422
    assert (await desk.ask("GET", "/api/session", None, bearer(wrong_key))).status == 401
    key = await create_key(desk, headers)
    token = (await desk.ask("POST", "/api/realtime/token", None, headers)).json()["token"]
    made = await desk.ask("POST", "/api/tickets", {"title": body_text, "description": body_text}, bearer(key["key"]))
    assert made.status == 201
    assert (await desk.ask("POST", "/api/tickets", {"title": "a", body_text: "a"}, headers)).status == 422
    assert (await desk.ask("GET", f"/api/search?q={body_text}", None, headers)).status == 200
    assert (await desk.ask("GET", f"/api/{uuid.uuid4()}", None, headers)).status == 404
    assert (await desk.ask("DELETE", f"/api/keys/{key['id']}", None, headers)).status == 204
    assert (await desk.ask("DELETE", "/api/session", None, headers)).status == 204

    def last_is_there() -> bool:
        mine = [line for line in desk.all_logs().splitlines() if str(tenant.users[0]["id"]) in line]
        return any('"method":"DELETE","route":"/api/session"' in line for line in mine)

    await until(last_is_there)
    logs = desk.all_logs()
    for secret in (
        *(user["password"] for user in tenant.users),
        wrong_password,
        wrong_key,
        tenant.key,
        key["key"],
        str(headers["Cookie"]).partition("=")[2],
        str(headers["X-CSRF-Token"]),
        token,
        body_text,
    ):
        assert secret not in logs

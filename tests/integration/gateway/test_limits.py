"""Rate limits of four gateway processes that share a Redis: what a client gets who spreads over all of them."""

import asyncio
import contextlib
import itertools
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from tests.support.clients import Tenant, provision
from tests.support.desk import Desk, Reply, problem
from tests.support.processes import running_service
from tests.support.tickets import eventually, gauge

GATEWAYS = 4
# All refill so slowly that what passes in a test is the burst, and no other test's gateways have the same.
CREDENTIAL, ORGANIZATION, SIGN_IN, ACCOUNT = 120, 180, 41, 5
BATCH = 51  # what 500 rows cost
OVERSHOOT = (GATEWAYS - 1) * CREDENTIAL // 10
LIMITS = {
    "GATEWAY_LIMIT_CREDENTIAL": f"60/{CREDENTIAL}",
    "GATEWAY_LIMIT_ORGANIZATION": f"60/{ORGANIZATION}",
    "GATEWAY_LIMIT_SIGN_IN": f"7/{SIGN_IN}",
    "GATEWAY_LIMIT_ACCOUNT": f"1/{ACCOUNT}",
}
Headers = dict[str, str | bytes | None]
TOLD = re.compile(r'"(credential|organization|sign-in|account)";r=(\d+);t=(\d+)')


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def desk(stack: Stack, topic: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    folder = tmp_path_factory.mktemp("limits")
    logs = [folder / "tickets.log", *(folder / f"gateway-{number}.log" for number in range(GATEWAYS))]
    async with running_service(stack, "tickets", logs[0], TICKETS_TOPIC_PARTITIONS="3") as tickets:
        started = [
            running_service(stack, "gateway", log, script=(), GATEWAY_TICKETS_URL=tickets.url, **LIMITS)
            for log in logs[1:]
        ]
        gateways = [await gateway.__aenter__() for gateway in started]
        try:
            tenants = [await provision(stack, agents=1) for _ in range(2)]
            yield Desk(gateways, tickets, tenants, logs)
        finally:
            for gateway in started:
                await gateway.__aexit__(None, None, None)


@pytest_asyncio.fixture(loop_scope="session")
async def acme(stack: Stack) -> Tenant:
    """An organization that has used nothing of its limits."""
    return await provision(stack, agents=1)


OF = {
    "credential": "this API key or session",
    "organization": "the organization, which all its API keys and sessions share,",
    "address": "this address for requests without a valid credential",
    "sign-in": "this address for attempts to sign in",
    "account": "this account for attempts to sign in",
}


def allowance(reply: Reply) -> tuple[str, int]:
    """The policy that an answer tells of, and what is left of it."""
    told = TOLD.fullmatch(reply.headers["ratelimit"])
    assert told, reply.headers
    return told[1], int(told[2])


def refusal(reply: Reply, policy: str) -> int:
    """The seconds after which a refused request may come again."""
    assert problem(reply) == (429, "rate_limited"), reply
    assert reply.json()["detail"] == f"The limit of {OF[policy]} is used up."
    assert reply.headers["cache-control"] == "no-store"
    return int(reply.headers["retry-after"])


async def flood(desk: Desk, path: str, who: Tenant, requests: int) -> list[int]:
    """The statuses of so many requests to each gateway, all gateways at the same time, ten connections each."""
    async with aiohttp.ClientSession(headers=who.headers, connector=aiohttp.TCPConnector(limit_per_host=10)) as http:

        async def one(url: str) -> int:
            async with http.get(url + path) as answer:
                await answer.read()
                return answer.status

        return await asyncio.gather(*(one(gateway.url) for _ in range(requests) for gateway in desk.gateways))


async def owe(desk: Desk, who: Tenant, *, batches: int, rows: int = 500) -> None:
    """Have so many batches of rows charged at the first gateway, beyond the limit if it comes to that."""
    body = {"tickets": [{"title": f"Row {number}"} for number in range(rows)]}
    for _ in range(batches):
        assert (await desk.ask("POST", "/api/tickets/bulk", body, who=who)).status == 200


async def ticket_of(desk: Desk, who: Tenant) -> str:
    made = await desk.ask("POST", "/api/tickets", {"title": "Asked for often"}, who=who)
    assert made.status == 201, made
    return str(made.headers["location"])


async def key_of(desk: Desk, who: Tenant) -> Tenant:
    """The same organization with another API key."""
    made = await desk.ask("POST", "/api/keys", {"name": "another"}, who=who)
    assert made.status == 201, made
    return Tenant(
        who.slug,
        {"organization": {"id": who.organization_id}, "users": who.users, "api_key": {"key": made.json()["key"]}},
    )


@contextlib.asynccontextmanager
async def lone_gateway(desk: Desk, stack: Stack, folder: Path, **limits: str) -> AsyncIterator[Desk]:
    """One more gateway with limits of its own: all tests come from one address."""
    urls = {"GATEWAY_TICKETS_URL": desk.tickets.url, **limits}
    async with running_service(stack, "gateway", folder / "gateway.log", script=(), **urls) as gateway:
        yield Desk([gateway], desk.tickets, [desk.acme, desk.other], [])


async def sign_in(desk: Desk, who: Tenant, password: str | None = None, *, user: int = 0, gateway: int = 0) -> Reply:
    account = who.users[user]
    body = {"organization": who.slug, "email": account["email"], "password": password or account["password"]}
    return await desk.ask("POST", "/api/session", body, gateway=gateway)


async def test_a_client_of_four_gateways_gets_the_limit_and_at_most_the_stated_overshoot(
    desk: Desk, acme: Tenant
) -> None:
    path = await ticket_of(desk, acme)
    other = await ticket_of(desk, desk.other)
    started = time.monotonic()
    statuses = await flood(desk, path, acme, 150)
    refilled = int(time.monotonic() - started) + 1
    assert set(statuses) == {200, 429}
    passed = statuses.count(200) + 1
    assert CREDENTIAL <= passed <= CREDENTIAL + refilled + OVERSHOOT
    for gateway in range(GATEWAYS):
        reply = await desk.ask("GET", path, who=acme, gateway=gateway)
        while reply.status == 200:  # one comes back each second
            reply = await desk.ask("GET", path, who=acme, gateway=gateway)
        refusal(reply, "credential")
        assert (await desk.ask("GET", other, who=desk.other, gateway=gateway)).status == 200, "another organization"


async def test_what_is_left_is_told_on_every_answer(desk: Desk, acme: Tenant) -> None:
    path = await ticket_of(desk, acme)
    replies = [
        await desk.ask("GET", path, who=acme),
        await desk.ask("GET", path, who=acme),
        await desk.ask("GET", path, None, {"If-None-Match": '"1"', "Connection": "keep-alive"}, who=acme),
        await desk.ask("GET", path, None, {"Connection": "keep-alive"}, who=acme),
        await desk.ask("GET", "/api/tickets/nothing", who=acme),
        await desk.ask("GET", "/api/tickets?limit=0", who=acme),
        await desk.ask("POST", "/api/tickets", {}, who=acme),
        await desk.ask("GET", "/api/reports/backlog?x=1", who=acme),
        await desk.ask("GET", "/api/session", who=acme),
    ]
    assert [reply.status for reply in replies] == [200, 200, 304, 200, 404, 400, 422, 200, 200]
    assert replies[3].headers["relaydesk-cache"] == "l1"
    left = []
    for reply in replies:
        assert reply.headers["ratelimit-policy"].startswith(f'"credential";q={CREDENTIAL};w={CREDENTIAL}')
        policy, remaining = allowance(reply)
        assert policy == "credential"
        left.append(remaining)
    assert all(later <= earlier for earlier, later in itertools.pairwise(left))
    assert left[0] - left[-1] >= 4, "some have come back meanwhile"


async def test_a_refused_request_asks_no_service_and_is_not_kept(desk: Desk, acme: Tenant) -> None:
    unread = await ticket_of(desk, acme)
    await owe(desk, acme, batches=3, rows=450)

    async def reads() -> float:
        name = 'http_request_duration_ms_count{method="GET",route="/api/tickets/{ticket_id}",status_code="200"}'
        return await gauge(desk.tickets, name)

    before = await reads()
    refused = await desk.ask("GET", unread, who=acme)
    assert 0 < refusal(refused, "credential") <= 1 + 3 * 46 - CREDENTIAL + 2, "what passed beyond the limit is owed"
    assert "relaydesk-cache" not in refused.headers
    assert await reads() == before

    async def comes_again() -> bool:
        reply = await desk.ask("GET", unread, who=acme)
        assert reply.status in {200, 429}
        return reply.status == 200

    await eventually(comes_again, seconds=60)
    assert await reads() == before + 1


async def test_an_organization_that_is_over_its_limit_can_still_end_the_key_that_did_it(
    desk: Desk, acme: Tenant
) -> None:
    path = await ticket_of(desk, acme)
    for batches in (3, 1):
        await owe(desk, await key_of(desk, acme), batches=batches)
    refusal(await desk.ask("GET", path, who=acme), "organization")
    found = await desk.ask("GET", "/api/keys", who=acme)
    assert found.status == 200
    busy = [key["id"] for key in found.json()["keys"] if key["name"] == "another"]
    assert len(busy) == 2
    assert (await desk.ask("DELETE", f"/api/keys/{busy[0]}", who=acme)).status == 204
    refusal(await desk.ask("POST", "/api/keys", {"name": "one more"}, who=acme), "organization")


async def test_ten_rows_of_a_bulk_request_cost_as_much_as_a_request(desk: Desk, acme: Tenant) -> None:
    rows = {"tickets": [{"title": f"Row {number}"} for number in range(400)]}
    first = await desk.ask("POST", "/api/tickets/bulk", rows, who=acme)
    assert first.status == 200, first
    second = await desk.ask("POST", "/api/tickets/bulk", {"tickets": []}, who=acme)
    assert second.status == 422
    third = await desk.ask("GET", "/api/session", who=acme)
    assert allowance(third)[1] <= CREDENTIAL - 3 - 40 + 5, "5 s may have passed"
    assert allowance(second)[1] - allowance(third)[1] <= 1, "a refused body has no rows"


async def test_wrong_passwords_of_an_account_are_refused_wherever_they_are_tried(desk: Desk, acme: Tenant) -> None:
    replies = await asyncio.gather(
        *(sign_in(desk, acme, f"guess {number}", gateway=number % GATEWAYS) for number in range(24))
    )
    judged = [reply for reply in replies if reply.status == 401]
    assert ACCOUNT <= len(judged) <= ACCOUNT + GATEWAYS - 1
    for reply in replies:
        if reply not in judged:
            assert 0 < refusal(reply, "account") <= 60 * GATEWAYS
    for gateway in range(GATEWAYS):
        refusal(await sign_in(desk, acme, gateway=gateway), "account")
    assert (await sign_in(desk, acme, user=1)).status == 201, "another account"
    shown = await desk.ask("GET", "/api/session", who=acme)
    assert shown.status == 200, "what was signed in before stays so"


async def test_right_passwords_are_not_counted(desk: Desk, acme: Tenant) -> None:
    for number in range(3 * ACCOUNT):
        reply = await sign_in(desk, acme, gateway=number % GATEWAYS)
        assert reply.status == 201
        assert allowance(reply)[0] == "account"


async def test_an_address_that_guesses_keys_is_refused_and_whoever_was_let_in_before_is_not(
    desk: Desk, stack: Stack, tmp_path: Path, acme: Tenant
) -> None:
    new = await key_of(desk, acme)
    async with lone_gateway(desk, stack, tmp_path, GATEWAY_LIMIT_ADDRESS="3/10") as lone:
        assert (await lone.ask("GET", "/api/session", who=acme)).status == 200
        replies = []
        for number in range(15):
            headers: Headers = {
                "Authorization": f"Bearer rdk_{'x' * 40}{number}",
                "X-Forwarded-For": f"192.0.2.{number}",
            }
            replies.append(await lone.ask("GET", "/api/session", None, headers))
        assert [reply.status for reply in replies] == [401] * 10 + [429] * 5
        assert 0 < refusal(replies[-1], "address") <= 20
        refusal(await lone.ask("GET", "/api/session"), "address")
        assert (await lone.ask("GET", "/api/session", who=acme)).status == 200
        refusal(await lone.ask("GET", "/api/session", who=new), "address")


async def test_behind_a_trusted_proxy_each_client_has_its_own_limit(desk: Desk, stack: Stack, tmp_path: Path) -> None:
    settings = {"GATEWAY_LIMIT_ADDRESS": "3/5", "GATEWAY_TRUSTED_PROXIES": "127.0.0.1"}
    async with lone_gateway(desk, stack, tmp_path, **settings) as lone:
        statuses = {}
        for client in ("192.0.2.1", "2001:db8::1", "2001:db8::2"):
            replies = [await lone.ask("GET", "/api/session", None, {"X-Forwarded-For": client}) for _ in range(7)]
            statuses[client] = [reply.status for reply in replies]
    one_network = {"192.0.2.1": [401] * 5 + [429] * 2, "2001:db8::1": [401] * 5 + [429] * 2, "2001:db8::2": [429] * 7}
    assert statuses == one_network


async def test_a_sign_in_address_is_limited_over_all_accounts(desk: Desk, stack: Stack, tmp_path: Path) -> None:
    async with lone_gateway(desk, stack, tmp_path, GATEWAY_LIMIT_SIGN_IN="3/4") as lone:
        statuses = []
        for number in range(6):
            body = {"organization": desk.acme.slug, "email": f"nobody-{number}@example.com", "password": "guess"}
            reply = await lone.ask("POST", "/api/session", body)
            statuses.append(reply.status)
    assert statuses == [401] * 4 + [429] * 2
    assert 0 < refusal(reply, "sign-in") <= 20


async def test_without_redis_each_gateway_limits_by_itself_and_they_agree_again(
    desk: Desk, stack: Stack, acme: Tenant
) -> None:
    path = await ticket_of(desk, acme)

    async def shared(wanted: float) -> bool:
        await asyncio.gather(*(desk.ask("GET", path, who=desk.other, gateway=number) for number in range(GATEWAYS)))
        return all([await gauge(gateway, "rate_limits_shared") == wanted for gateway in desk.gateways])

    await stack.parts["redis"].stop()
    try:
        statuses = await flood(desk, path, acme, 2 * CREDENTIAL)
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 2 * CREDENTIAL, "each by itself"
        assert await shared(0)
    finally:
        await stack.parts["redis"].start()
    await eventually(lambda: shared(1), seconds=60)
    assert "rate_limits_alone" in desk.all_logs()


async def test_a_refusal_is_in_the_metrics_and_in_the_log(desk: Desk, acme: Tenant) -> None:
    path = await ticket_of(desk, acme)

    async def refusals() -> float:
        return sum([await gauge(one, 'rate_limited_total{policy="credential"}') for one in desk.gateways])

    await flood(desk, path, acme, 50)
    before = await refusals()
    statuses = await flood(desk, path, acme, 50)
    assert await refusals() == before + statuses.count(429)

    async def logged() -> bool:
        lines = [json.loads(line) for line in desk.all_logs().splitlines() if '"limited"' in line]
        return any(line["status"] == 429 and line["limited"] for line in lines)

    await eventually(logged)

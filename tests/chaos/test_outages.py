"""A server is taken away under real processes: what can be accepted is, the rest is told so, and all of it recovers."""

import asyncio
import contextlib
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from infra.local.stack import Stack
from tests.support.clients import provision
from tests.support.desk import Desk, Reply, problem
from tests.support.processes import running_service

PATIENCE_SECONDS = 30
Headers = dict[str, str | bytes | None]


@contextlib.asynccontextmanager
async def without(stack: Stack, part: str) -> AsyncIterator[None]:
    await stack.parts[part].stop()
    try:
        yield
    finally:
        await stack.parts[part].start()


async def session(desk: Desk) -> Headers:
    who = desk.acme.users[0]
    body = {"organization": desk.acme.slug, "email": who["email"], "password": who["password"]}
    reply = await desk.ask("POST", "/api/session", body)
    assert reply.status == 201, reply
    return {"Cookie": reply.headers["set-cookie"].partition(";")[0], "X-CSRF-Token": reply.json()["csrf_token"]}


async def create(desk: Desk, headers: Headers | None = None) -> Reply:
    who = desk.acme if headers is None else None
    return await desk.ask("POST", "/api/tickets", {"title": "In the storm"}, headers, who=who)


async def update(desk: Desk, ticket: str, version: int) -> Reply:
    body, headers = {"title": f"Version {version + 1}"}, {"If-Match": f'"{version}"'}
    return await desk.ask("PATCH", f"/api/tickets/{ticket}", body, headers, who=desk.acme)


async def get(desk: Desk, target: str, headers: Headers | None = None, *, gateway: int = 0) -> Reply:
    return await desk.ask("GET", target, None, headers, who=desk.acme if headers is None else None, gateway=gateway)


async def recovers(ask: Any) -> Reply:
    """Ask until the answer is no 503 or 504; nothing but those may come meanwhile."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            reply: Reply = await ask()
            if reply.status not in {503, 504}:
                return reply
            problem(reply)
            await asyncio.sleep(0.05)


def unavailable(reply: Reply) -> None:
    assert problem(reply) == (503, "service_unavailable"), reply
    assert int(reply.headers["retry-after"]) > 0


async def test_without_kafka_tickets_are_accepted_and_their_events_catch_up(
    stack: Stack, desk: Desk, database: asyncpg.Pool
) -> None:
    async with without(stack, "kafka"):
        made = [await create(desk) for _ in range(5)]
        assert [reply.status for reply in made] == [201] * 5
        ids = [uuid.UUID(reply.json()["id"]) for reply in made]
        assert await database.fetchval("SELECT count(*) FROM outbox WHERE ticket_id = ANY($1)", ids) == 5
        assert (await get(desk, f"/api/tickets/{ids[0]}")).status == 200
        changed = await update(desk, str(ids[0]), 1)
        assert changed.status == 200
        assert (await get(desk, f"/api/tickets/{ids[0]}")).json()["version"] == 2
    async with asyncio.timeout(60):
        while await database.fetchval("SELECT count(*) FROM outbox WHERE ticket_id = ANY($1)", ids):
            await asyncio.sleep(0.1)


async def test_without_postgresql_writes_and_new_reads_are_told_to_come_again(
    stack: Stack, desk: Desk, database: asyncpg.Pool
) -> None:
    headers = await session(desk)  # sessions stand in Redis, so who asks is still known
    cached = f"/api/tickets/{(await create(desk)).json()['id']}"
    unread = f"/api/tickets/{(await create(desk)).json()['id']}"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await get(desk, cached, headers)).headers["relaydesk-cache"] != "l1":
            await asyncio.sleep(0.05)
    before = await database.fetchval("SELECT count(*) FROM tickets")
    async with without(stack, "postgres"):
        unavailable(await create(desk, headers))
        unavailable(await create(desk))
        unavailable(await desk.ask("POST", "/api/session", {"organization": "o", "email": "e", "password": "p"}))
        unavailable(await get(desk, unread, headers))
        assert (await get(desk, cached, headers)).status == 200
        health = await get(desk, "/api/health", {})
        assert health.status == 503
        assert {c["name"]: c["status"] for c in health.json()["checks"]}["database"] == "failed"
    assert (await recovers(lambda: create(desk, headers))).status == 201
    assert (await recovers(lambda: create(desk))).status == 201
    assert (await recovers(lambda: get(desk, unread, headers))).status == 200
    assert await database.fetchval("SELECT count(*) FROM tickets") == before + 2, "nothing of the refused was written"
    async with asyncio.timeout(60):  # the relay as well
        while await database.fetchval("SELECT count(*) FROM outbox"):
            await asyncio.sleep(0.1)


async def test_without_the_durable_redis_keys_work_and_sessions_are_told_to_come_again(
    stack: Stack, desk: Desk
) -> None:
    headers = await session(desk)
    async with without(stack, "redis"):
        assert (await create(desk)).status == 201
        assert (await get(desk, "/api/tickets")).status == 200
        async with asyncio.timeout(10):
            # What a session resolves to is remembered for one second.
            while (reply := await get(desk, "/api/session", headers)).status == 200:
                await asyncio.sleep(0.05)
            unavailable(reply)
            unavailable(await create(desk, headers))
            user = desk.acme.users[0]
            body = {"organization": desk.acme.slug, "email": user["email"], "password": user["password"]}
            unavailable(await desk.ask("POST", "/api/session", body))
    assert (await recovers(lambda: get(desk, "/api/session", headers))).status == 200
    assert (await recovers(lambda: create(desk, headers))).status == 201


async def test_without_the_cache_everything_works_and_nothing_is_stale(stack: Stack, desk: Desk) -> None:
    ticket = (await create(desk)).json()["id"]
    target = f"/api/tickets/{ticket}"
    for gateway in (0, 1):
        await get(desk, target, gateway=gateway)
    version = 1

    async def write_and_read_everywhere() -> None:
        nonlocal version
        reply = await update(desk, ticket, version)
        assert reply.status == 200, reply
        version += 1
        assert (await get(desk, target)).json()["version"] == version, "one's own write"
        token = {"Relaydesk-Consistency": reply.headers["relaydesk-consistency"]}
        there = await desk.ask("GET", target, None, token, who=desk.acme, gateway=1)
        assert there.json()["version"] == version

    async with without(stack, "cache-redis"):
        async with asyncio.timeout(20):
            for _ in range(5):
                await write_and_read_everywhere()
        async with asyncio.timeout(2.5):  # without a token too, as soon as the other gateway has noticed
            while (await get(desk, target, gateway=1)).json()["version"] != version:
                await asyncio.sleep(0.02)
    await write_and_read_everywhere()
    for gateway in (0, 1):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                reply = await get(desk, target, gateway=gateway)
                if reply.headers["relaydesk-cache"] == "l1":
                    break
                await asyncio.sleep(0.05)
        assert reply.json()["version"] == version


async def test_a_cache_that_hangs_holds_up_requests_briefly_and_makes_nothing_stale(stack: Stack, desk: Desk) -> None:
    ticket = (await create(desk)).json()["id"]
    target = f"/api/tickets/{ticket}"
    for gateway in (0, 1):
        await get(desk, target, gateway=gateway)
    stack.pause("cache-redis")
    try:
        async with asyncio.timeout(20):
            for version in (1, 2, 3):
                assert (await update(desk, ticket, version)).status == 200
                assert (await get(desk, target)).json()["version"] == version + 1
    finally:
        stack.resume("cache-redis")
    for _ in range(20):  # the entry in Redis is old, and its invalidation is owed
        assert (await get(desk, target)).json()["version"] == 4
        await asyncio.sleep(0.1)
    assert (await get(desk, target, gateway=1)).json()["version"] == 4


async def test_without_the_tickets_service_the_gateway_says_so(desk: Desk) -> None:
    headers = await session(desk)
    target = f"/api/tickets/{(await create(desk)).json()['id']}"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await get(desk, target, headers)).headers["relaydesk-cache"] != "l1":
            await asyncio.sleep(0.05)
    await desk.tickets.stop()
    try:
        unavailable(await create(desk, headers))
        unavailable(await create(desk))
        unavailable(await get(desk, f"/api/tickets/{uuid.uuid4()}", headers))
        assert (await get(desk, target, headers)).status == 200, "what is cached is still told"
        assert (await get(desk, "/readyz", {})).status == 200
        assert (await get(desk, "/api/session", headers)).status == 200
    finally:
        await desk.tickets.start()
    assert (await recovers(lambda: create(desk, headers))).status == 201
    assert (await recovers(lambda: create(desk))).status == 201


async def test_sigterm_leaves_no_request_unanswered(stack: Stack, desk: Desk, tmp_path: Path) -> None:
    """The tickets service is frozen, so that the requests are certainly in flight when the signal comes."""
    requests = 30
    tenant = await provision(stack)
    urls = {"GATEWAY_TICKETS_URL": desk.tickets.url}
    async with running_service(stack, "gateway", tmp_path / "gateway.log", script=(), **urls) as gateway:
        small = Desk([gateway], desk.tickets, [tenant, desk.other], [])
        who = await session(small)
        assert gateway.process is not None
        assert desk.tickets.process is not None
        process = psutil.Process(gateway.process.pid)

        def upstream_connections() -> int:
            return sum(
                bool(connection.raddr) and connection.raddr.port == desk.tickets.port
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_ESTABLISHED
            )

        desk.tickets.process.pause()
        try:
            asked = [asyncio.create_task(create(small, who)) for _ in range(requests)]
            async with asyncio.timeout(PATIENCE_SECONDS):
                while upstream_connections() < requests:
                    await asyncio.sleep(0.02)
            gateway.kill(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while '"draining"' not in gateway.log.read_text():
                    await asyncio.sleep(0.02)
            assert not any(task.done() for task in asked)
        finally:
            desk.tickets.process.resume()
        assert [reply.status for reply in await asyncio.gather(*asked)] == [201] * requests
        assert await gateway.process.wait() == 0
    assert "Traceback" not in gateway.log.read_text()

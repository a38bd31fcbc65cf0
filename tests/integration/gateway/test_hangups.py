"""Clients that hang up, at the gateway: their reads and writes are given up, the end of a credential is not."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import redis.asyncio as aioredis

from infra.local.stack import Stack
from libs.common import revocations
from tests.support.desk import Desk
from tests.support.tickets import eventually

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@contextlib.asynccontextmanager
async def locked(database: asyncpg.Pool, query: str, *arguments: Any) -> AsyncIterator[None]:
    async with database.acquire() as connection, connection.transaction():
        await connection.execute(query, *arguments)
        yield


async def send(desk: Desk, method: str, path: str, body: Any = None) -> asyncio.StreamWriter:
    """A request of the first organization whose answer is not waited for."""
    content = json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer {desk.acme.key}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    _reader, writer = await asyncio.open_connection("127.0.0.1", desk.gateways[0].port)
    writer.write(f"{head}\r\n".encode() + content)
    await writer.drain()
    return writer


async def test_a_write_is_given_up_with_its_client(desk: Desk, database: asyncpg.Pool) -> None:
    title = f"Gone {uuid.uuid4()}"
    lock = "SELECT FROM organizations WHERE id = $1 FOR UPDATE"
    before = desk.all_logs().count('"event":"request_abandoned"')
    async with locked(database, lock, uuid.UUID(desk.acme.organization_id)):
        writer = await send(desk, "POST", "/api/tickets", {"title": title})
        await eventually(lambda: database.fetchval(WAITING))
        writer.close()

        async def nobody_waits() -> bool:
            return not await database.fetchval(WAITING)

        await eventually(nobody_waits)
    # Of the gateway and, as the gateway hung up in turn, of the tickets service: it was not the lock's time-out.

    async def both_told() -> bool:
        return desk.all_logs().count('"event":"request_abandoned"') == before + 2

    await eventually(both_told)
    assert not await database.fetchval("SELECT 1 FROM tickets WHERE title = $1", title)


async def test_a_key_is_revoked_everywhere_also_when_the_client_hangs_up(
    stack: Stack, desk: Desk, database: asyncpg.Pool
) -> None:
    """Given up half-way, it would have ended in the database, and open sockets would not have heard of it."""
    made = await desk.ask("POST", "/api/keys", {"name": "To be revoked"}, who=desk.acme)
    key_id = made.json()["id"]
    lock = "SELECT FROM api_keys WHERE id = $1 FOR UPDATE"
    async with locked(database, lock, uuid.UUID(key_id)):
        writer = await send(desk, "DELETE", f"/api/keys/{key_id}")
        await eventually(lambda: database.fetchval(WAITING))
        writer.close()
        # The gateway has noticed once it has answered others on connections of their own.
        for _ in range(10):
            assert (await desk.ask("GET", "/api/session", who=desk.acme)).status == 200
        assert await database.fetchval(WAITING) == 1
    await eventually(lambda: database.fetchval("SELECT revoked_at FROM api_keys WHERE id = $1", uuid.UUID(key_id)))
    async with aioredis.Redis.from_url(stack.environment("gateway")["REDIS_URL"]) as redis:

        async def announced() -> bool:
            return key_id in repr(await redis.xrevrange(revocations.STREAM, count=100))

        await eventually(announced)


async def cached(desk: Desk, path: str, gateway: int) -> None:
    """Read until the answer comes from the gateway's own cache, twice: no event of the creation voids it any more."""

    async def from_l1() -> bool:
        found = [await desk.ask("GET", path, who=desk.acme, gateway=gateway) for _ in range(2)]
        return [reply.headers["relaydesk-cache"] for reply in found] == ["l1", "l1"]

    await eventually(from_l1)


@pytest.mark.parametrize("gateway", [0, 1])
async def test_a_bulk_update_is_read_back_at_once(desk: Desk, gateway: int) -> None:
    made = await desk.ask(
        "POST", "/api/tickets/bulk", {"tickets": [{"title": f"{n}"} for n in range(20)]}, who=desk.acme
    )
    ids = [result["id"] for result in made.json()["results"]]
    for ticket_id in ids:
        await cached(desk, f"/api/tickets/{ticket_id}", gateway)
    rows = [{"id": ticket_id, "version": 1, "status": "pending"} for ticket_id in ids]
    changed = await desk.ask("PATCH", "/api/tickets/bulk", {"tickets": rows}, who=desk.acme)
    assert {result["status"] for result in changed.json()["results"]} == {"updated"}
    token = changed.headers["relaydesk-consistency"]
    for ticket_id in ids:
        headers = {"Relaydesk-Consistency": token} if gateway else {}
        found = await desk.ask("GET", f"/api/tickets/{ticket_id}", None, headers, who=desk.acme, gateway=gateway)
        assert (found.json()["version"], found.headers["etag"]) == (2, '"2"')
    listed = await desk.ask("GET", "/api/tickets?status=pending&limit=100", who=desk.acme)
    assert set(ids) <= {ticket["id"] for ticket in listed.json()["tickets"]}


async def test_history_is_cached_with_its_ticket_and_the_audit_log_is_not_cached(desk: Desk) -> None:
    ticket = (await desk.ask("POST", "/api/tickets", {"title": "Told"}, who=desk.acme)).json()
    path = f"/api/tickets/{ticket['id']}/history"
    for version in (1, 2):
        for _ in range(2):
            found = await desk.ask("GET", path, who=desk.acme)
            assert [entry["version"] for entry in found.json()["entries"]] == list(range(version, 0, -1))
        assert "etag" in found.headers
        changes = {"title": f"Told {version}"}
        headers = {"If-Match": f'"{version}"'}
        await desk.ask("PATCH", f"/api/tickets/{ticket['id']}", changes, headers, who=desk.acme)
    foreign = await desk.ask("GET", path, who=desk.other)
    assert foreign.status == 404
    key = (await desk.ask("POST", "/api/keys", {"name": "Audited"}, who=desk.acme)).json()
    token = (await desk.ask("POST", "/api/tickets", {"title": "For its token"}, who=desk.acme)).headers
    audit = await desk.ask(
        *("GET", "/api/audit?action=key.created&limit=5", None),
        {"Relaydesk-Consistency": token["relaydesk-consistency"]},
        who=desk.acme,
    )
    assert audit.json()["entries"][0]["target_id"] == key["id"]
    assert audit.headers["cache-control"] == "private, no-store"
    assert key["key"] not in audit.body.decode()
    strangers = await desk.ask("GET", "/api/audit?action=key.created", who=desk.other)
    assert key["id"] not in strangers.body.decode()

"""A ticket travels: HTTP → PostgreSQL → Kafka → socket and search, and nobody else sees it."""

import asyncio
import json
import uuid
from typing import Any

import aiohttp

from infra.local.stack import Stack
from tests.support.clients import HEADER, Tenant, client, foreign_consumer, headers_of, provision
from tests.support.realtime import Listener, listening, until

TOPIC = "relaydesk.tickets.v1"


async def _listen(http: aiohttp.ClientSession) -> Any:
    async with http.post("/api/realtime/token") as answer:
        assert answer.status == 200
        told = await answer.json()
    return listening(told["url"], told["token"])


async def _found(http: aiohttp.ClientSession, query: str) -> list[str]:
    async with http.get("/api/search", params={"q": query}) as answer:
        assert answer.status == 200, await answer.text()
        return [result["ticket"]["id"] for result in (await answer.json())["results"]]


async def _search_until(http: aiohttp.ClientSession, query: str, ticket_id: str) -> None:
    async with asyncio.timeout(30):
        while ticket_id not in await _found(http, query):
            await asyncio.sleep(0.05)


async def test_a_ticket_travels_from_http_to_topic_socket_and_search(platform: Stack, tenant: Tenant) -> None:
    word = f"w{uuid.uuid4().hex}"
    async with (
        client(platform, tenant) as http,
        foreign_consumer(platform, TOPIC) as consumer,
        await _listen(http) as who,
    ):
        body = {"title": f"Printer {word}", "description": "It burns", "priority": "high"}
        async with http.post("/api/tickets", json=body) as answer:
            assert answer.status == 201
            ticket = await answer.json()
        changes = {"status": "pending", "priority": "urgent"}
        async with http.patch(f"/api/tickets/{ticket['id']}", json=changes, headers={"If-Match": '"1"'}) as answer:
            assert answer.status == 200
        async with http.post(f"/api/tickets/{ticket['id']}/comments", json={"body": f"c{word}"}) as answer:
            assert answer.status == 201
            token = answer.headers[HEADER]

        messages = await _messages_of(consumer, ticket["id"], count=3)
        assert [headers_of(m)["ce_type"] for m in messages] == [
            "ticket.created.v1",
            "ticket.status_changed.v1",
            "ticket.commented.v1",
        ]
        assert [headers_of(m)["ce_ticketversion"] for m in messages] == ["1", "2", "3"]
        assert {m.key.decode() for m in messages} == {ticket["id"]}
        created = headers_of(messages[0])
        assert created["ce_specversion"] == "1.0"
        assert created["ce_organizationid"] == tenant.organization_id
        assert created["content-type"] == "application/json"
        assert created["traceparent"].startswith("00-")
        assert json.loads(messages[0].value)["ticket"] == ticket
        assert json.loads(messages[1].value)["changed"] == ["priority", "status"]

        await until(lambda: len(who.items) == 3)
        assert [item["version"] for item in who.items] == [1, 2, 3]
        assert who.items[2]["comment"]["body"] == f"c{word}"
        assert who.items[0]["ticket"]["title"] == f"Printer {word}"

        await _search_until(http, word, ticket["id"])
        await _search_until(http, f"c{word}", ticket["id"])
        async with http.get(f"/api/tickets/{ticket['id']}", headers={HEADER: token}) as answer:
            assert (await answer.json())["version"] == 3


async def test_search_results_follow_a_change_though_they_are_cached(platform: Stack, tenant: Tenant) -> None:
    old, new = (f"w{uuid.uuid4().hex}" for _ in range(2))
    async with client(platform, tenant) as http:
        async with http.post("/api/tickets", json={"title": old}) as answer:
            ticket_id = (await answer.json())["id"]
        await _search_until(http, old, ticket_id)
        assert await _found(http, new) == []  # now both answers are in the cache
        async with http.patch(f"/api/tickets/{ticket_id}", json={"title": new}, headers={"If-Match": '"1"'}) as answer:
            assert answer.status == 200
        await _search_until(http, new, ticket_id)
        assert await _found(http, old) == []


async def test_a_token_from_an_event_is_honoured_by_the_gateway(platform: Stack, tenant: Tenant) -> None:
    """Whoever was told of a version by the socket gets at least that version by HTTP."""
    async with client(platform, tenant) as http, client(platform, tenant) as reader, await _listen(reader) as who:
        async with http.post("/api/tickets", json={"title": "Told"}) as answer:
            ticket_id = (await answer.json())["id"]
        for version in range(1, 30):
            changes = {"title": f"Told {version}"}
            headers = {"If-Match": f'"{version}"'}
            async with http.patch(f"/api/tickets/{ticket_id}", json=changes, headers=headers) as answer:
                assert answer.status == 200
            await until(lambda: bool(who.items) and who.items[-1]["version"] > version)  # noqa: B023 (awaited here)
            item = who.items[-1]
            async with reader.get(f"/api/tickets/{ticket_id}", headers={HEADER: item["consistency"]}) as answer:
                assert (await answer.json())["version"] >= item["version"]


async def test_two_organizations_never_see_each_other(platform: Stack, tenant: Tenant) -> None:
    word = f"w{uuid.uuid4().hex}"
    other = await provision(platform)
    async with client(platform, tenant) as http, client(platform, other) as foreign:
        async with await _listen(http) as mine, await _listen(foreign) as theirs:
            ticket_id = await _create(http, f"Secret {word}")
            marker = await _create(foreign, f"Marker {word}")
            await until(lambda: _saw(mine, ticket_id) and _saw(theirs, marker))
            assert not _saw(theirs, ticket_id)
        await _search_until(http, word, ticket_id)
        await _search_until(foreign, word, marker)
        assert await _found(foreign, word) == [marker]
        for method, path, body in (
            ("GET", f"/api/tickets/{ticket_id}", None),
            ("PATCH", f"/api/tickets/{ticket_id}", {"title": "mine"}),
            ("GET", f"/api/tickets/{ticket_id}/comments", None),
            ("POST", f"/api/tickets/{ticket_id}/comments", {"body": "mine"}),
        ):
            async with foreign.request(method, path, json=body, headers={"If-Match": '"1"'}) as answer:
                assert answer.status == 404, (method, path)


async def test_health_is_ok_when_everything_runs(platform: Stack) -> None:
    async with client(platform) as http, http.get("/api/health") as answer:
        body = await answer.json()
        assert (answer.status, body["status"]) == (200, "ok"), body
        assert {"database", "redis", "disk"} <= {check["name"] for check in body["checks"]}


async def _create(http: aiohttp.ClientSession, title: str) -> str:
    async with http.post("/api/tickets", json={"title": title}) as answer:
        assert answer.status == 201
        return str((await answer.json())["id"])


def _saw(listener: Listener, ticket_id: str) -> bool:
    return any(item["ticket"]["id"] == ticket_id for item in listener.items)


async def _messages_of(consumer: Any, ticket_id: str, *, count: int) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            for batch in (await consumer.getmany(timeout_ms=200)).values():
                found += [message for message in batch if message.key == ticket_id.encode()]
    return found

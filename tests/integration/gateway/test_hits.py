"""Requests that come again on a kept-alive connection are answered from L1 before they are routed."""

import asyncio
import gzip
import json
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import brotli
import pytest
import pytest_asyncio

from tests.support.clients import Tenant
from tests.support.desk import Desk

TOKEN = "Relaydesk-Consistency"


class Client:
    """Kept-alive connections to one gateway; bodies stay as they were sent."""

    def __init__(self, session: aiohttp.ClientSession, base: str, tenant: Tenant) -> None:
        self._session = session
        self._base = base
        self._key = tenant.key

    async def ask(
        self, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None, key: str = ""
    ) -> tuple[int, Mapping[str, str], bytes]:
        sent = {"Authorization": f"Bearer {key or self._key}", **(headers or {})}
        async with self._session.request(method, self._base + target, json=body, headers=sent) as answer:
            return answer.status, answer.headers, await answer.read()

    async def get(self, target: str, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        return await self.ask("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})

    async def until_hit(self, target: str) -> Mapping[str, str]:
        """Ask until L1 answers: what was just written is still being invalidated by its event."""
        async with asyncio.timeout(30):
            while True:
                _status, headers, _body = await self.get(target)
                if headers["Relaydesk-Cache"] == "l1":
                    # The first to find it there was routed.
                    return (await self.get(target))[1]


@pytest_asyncio.fixture(loop_scope="session")
async def client(desk: Desk) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=1)
    headers = {"Accept-Encoding": "identity"}
    async with aiohttp.ClientSession(connector=connector, headers=headers, auto_decompress=False) as session:
        yield Client(session, f"http://127.0.0.1:{desk.gateways[0].port}", desk.acme)


@pytest_asyncio.fixture(loop_scope="session")
async def target(client: Client) -> str:
    body = {"title": "Read often", "description": "word " * 400}
    status, headers, _body = await client.ask("POST", "/api/tickets", body)
    assert status == 201
    return headers["Location"]


def told(headers: Mapping[str, str]) -> dict[str, str]:
    changing = {"date", "relaydesk-cache", "server", "ratelimit"}
    return {name.lower(): value for name, value in headers.items() if name.lower() not in changing}


async def test_a_hit_is_the_answer_that_was_routed(client: Client, target: str) -> None:
    async with asyncio.timeout(60):
        while True:
            await client.until_hit(target)
            _status, hit, hit_body = await client.get(target)
            # A request with an expectation takes the long way.
            status, routed, routed_body = await client.get(target, Expect="100-continue")
            assert status == 200
            if hit["Relaydesk-Cache"] == routed["Relaydesk-Cache"] == "l1":
                break  # else the event of the creation came between
    assert hit_body == routed_body
    assert told(hit) == told(routed)
    assert hit["Date"].endswith(" GMT")


async def test_a_write_ends_the_hits_of_what_it_changed(client: Client, target: str) -> None:
    for version in range(1, 6):
        await client.until_hit(target)
        status, changed, _body = await client.ask(
            "PATCH", target, {"title": f"Version {version + 1}"}, {"If-Match": f'"{version}"'}
        )
        assert status == 200
        status, _headers, body = await client.get(target)
        assert json.loads(body)["version"] == version + 1
        assert (await client.get(target, **{TOKEN: changed[TOKEN]}))[0] == 200


async def test_a_token_is_honoured_by_a_hit(client: Client, target: str) -> None:
    hit = await client.until_hit(target)
    other = {"title": "Another"}
    _status, newer, _body = await client.ask("POST", "/api/tickets", other)
    status, answer, _body = await client.get(target, **{TOKEN: newer[TOKEN]})
    assert status == 200
    assert answer[TOKEN] >= newer[TOKEN] > hit[TOKEN]
    assert answer["Relaydesk-Cache"] != "l1"
    assert (await client.get(target, **{TOKEN: "nonsense"}))[0] == 400


async def test_what_is_current_is_not_sent_again(client: Client, target: str) -> None:
    await client.until_hit(target)
    for if_none_match in ('"1"', 'W/"1"', '"0", "1"', "*", '"1-br"', '"1-gzip"'):
        status, headers, body = await client.get(target, If_None_Match=if_none_match)
        assert (status, body) == (304, b"")
        assert headers["ETag"] == '"1"'
        assert "Content-Length" not in headers
        assert "Content-Type" not in headers
    assert (await client.get(target, If_None_Match='"2"'))[0] == 200


@pytest.mark.parametrize(("coding", "decode"), [("gzip", gzip.decompress), ("br", brotli.decompress)])
async def test_a_hit_comes_in_the_coding_that_was_asked_for(
    client: Client, target: str, coding: str, decode: Any
) -> None:
    await client.until_hit(target)
    _status, _headers, plain = await client.get(target)
    for expectation in ({}, {"Expect": "100-continue"}):
        status, headers, body = await client.get(target, Accept_Encoding=coding, **expectation)
        assert status == 200
        assert headers["Content-Encoding"] == coding
        assert "accept-encoding" in headers["Vary"].lower()
        assert len(body) < len(plain)
        assert decode(body) == plain
        assert headers["ETag"] == f'"1-{coding}"'
    status, again, _body = await client.get(target, Accept_Encoding=coding, If_None_Match=headers["ETag"])
    assert (status, again["ETag"]) == (304, headers["ETag"])
    # The tag of any coding says what a change is based on.
    assert (await client.ask("PATCH", target, {"title": "New"}, {"If-Match": headers["ETag"]}))[0] == 200


async def test_a_revoked_key_hits_no_more(desk: Desk, client: Client, target: str) -> None:
    status, _headers, body = await client.ask("POST", "/api/keys", {"name": "short-lived"})
    assert status == 201
    key = json.loads(body)
    await client.until_hit(target)
    for _ in range(3):
        assert (await client.ask("GET", target, key=key["key"]))[0] == 200
    assert (await client.ask("DELETE", f"/api/keys/{key['id']}"))[0] == 204
    assert (await client.ask("GET", target, key=key["key"]))[0] == 401
    assert (await client.get(target))[0] == 200


async def test_another_tenants_key_hits_nothing(desk: Desk, client: Client, target: str) -> None:
    await client.until_hit(target)
    for _ in range(3):
        status, _headers, body = await client.ask("GET", target, key=desk.other.key)
        assert status == 404
        assert b"Read often" not in body
        assert (await client.ask("GET", target, key="rdk_" + "x" * 43))[0] == 401
    assert (await client.get(target))[0] == 200


async def test_a_hit_is_logged_and_counted_like_any_request(desk: Desk, client: Client, target: str) -> None:
    async def counted() -> float:
        metrics = f"http://127.0.0.1:{desk.gateways[0].port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(metrics) as answer:
            text = await answer.text()
        (line,) = [
            line
            for line in text.splitlines()
            if line.startswith("http_request_duration_ms_count")
            and 'method="GET"' in line
            and 'route="/api/tickets/{ticket_id}"' in line
            and 'status_code="304"' in line
        ]
        return float(line.rpartition(" ")[2])

    async def logged(trace_id: str) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while True:
                for line in desk.all_logs().splitlines():
                    if trace_id in line and '"event":"request"' in line and '"service":"gateway"' in line:
                        return dict(json.loads(line))
                await asyncio.sleep(0.02)

    async with asyncio.timeout(60):
        while True:
            await client.until_hit(target)
            assert (await client.get(target, If_None_Match="*"))[0] == 304
            before = await counted()
            trace_id = uuid.uuid4().hex
            traceparent = f"00-{trace_id}-00f067aa0ba902b7-01"
            assert (await client.get(target, If_None_Match="*", traceparent=traceparent))[0] == 304
            assert await counted() == before + 1
            line = await logged(trace_id)
            if line["cache"] == "l1":  # else the event of the creation came between
                break
    assert {name: line[name] for name in ("method", "route", "status", "credential", "level")} == {
        "method": "GET",
        "route": "/api/tickets/{ticket_id}",
        "status": 304,
        "credential": "api_key",
        "level": "info",
    }
    assert line["organization_id"] == desk.acme.organization_id


async def test_requests_sent_without_waiting_are_answered_in_their_order(
    desk: Desk, client: Client, target: str
) -> None:
    await client.until_hit(target)
    head = f"GET {target} HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer {desk.acme.key}\r\n"
    hit, unknown = f"{head}\r\n".encode(), f"{head}\r\n".replace(target, "/api/nothing").encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.gateways[0].port)
    try:
        last = f"{head}Connection: close\r\n\r\n".encode()
        writer.write(hit + unknown + hit + hit + last)
        async with asyncio.timeout(30):
            answers = await reader.read()
    finally:
        writer.close()
    assert re.findall(rb"HTTP/1.1 (\d+) ", answers) == [b"200", b"404", b"200", b"200", b"200"]

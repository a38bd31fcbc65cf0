"""What browsers and proxies are told, on every kind of answer of a real gateway."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.security import SECURITY_HEADERS
from tests.support.desk import Desk
from tests.support.processes import TestedService, running_service
from tests.support.raw_http import connection, noting_upstream
from tests.support.tickets import eventually

ORIGIN = "https://console.example.com"
FOREIGN = "https://console.example.com.evil"
CLIENT = "198.51.100.7"
HSTS = "Strict-Transport-Security"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browsers") / "gateway.log"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(stack: Stack, desk: Desk, log: Path) -> AsyncIterator[TestedService]:
    """Behind a proxy on this host, for the pages of one origin."""
    settings = {
        "GATEWAY_TICKETS_URL": desk.tickets.url,
        "GATEWAY_ALLOWED_ORIGINS": f"http://localhost:3000,{ORIGIN}",
        "GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8",
        "GATEWAY_COOKIE_SECURE": "false",
    }
    async with running_service(stack, "gateway", log, script=(), **settings) as service:
        yield service


@pytest_asyncio.fixture(loop_scope="session")
async def session(gateway: TestedService, desk: Desk) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(gateway.url, headers=desk.acme.headers) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ticket(desk: Desk) -> str:
    made = await desk.ask("POST", "/api/tickets", {"title": "A ticket"}, who=desk.acme)
    assert made.status == 201
    return str(made.json()["id"])


@pytest.mark.parametrize(
    ("method", "path", "status", "control"),
    [
        ("GET", "/api/tickets", 200, "private, no-cache"),
        ("GET", "/api/session", 200, "no-store"),
        ("GET", "/api/keys", 200, "private, no-store"),
        ("GET", "/api/openapi.json", 200, "public, max-age=300"),
        ("GET", "/api/docs", 200, "public, max-age=300"),
        ("GET", "/livez", 200, "no-store"),
        ("GET", "/metrics", 200, "no-store"),
        ("GET", "/api/tickets/1", 404, "no-store"),
        ("GET", "/nothing", 404, "no-store"),
        ("PUT", "/api/tickets", 405, "no-store"),
        ("GET", "/api/tickets?limit=x", 400, "private, no-store"),
        ("POST", "/api/tickets", 415, "no-store"),
        ("OPTIONS", "/api/tickets", 204, "no-store"),
    ],
)
async def test_every_answer_says_what_it_must_not_be_used_for(
    session: aiohttp.ClientSession, method: str, path: str, status: int, control: str
) -> None:
    async with session.request(method, path) as answer:
        assert answer.status == status
        assert answer.headers["Cache-Control"] == control
        policy = answer.headers["Content-Security-Policy"]
        if path == "/api/docs":
            assert "default-src 'none'" in policy
        else:
            assert policy == SECURITY_HEADERS["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert HSTS not in answer.headers
        assert "Server" not in answer.headers
        for name in ("X-Content-Type-Options", "Vary", "Cache-Control"):
            assert len(answer.headers.getall(name)) == 1 or name == "Vary"


@pytest.mark.parametrize("outcome", ["miss", "l1"])
async def test_an_answer_from_the_cache_too(session: aiohttp.ClientSession, ticket: str, outcome: str) -> None:
    path = f"/api/tickets/{ticket}"

    async def asked() -> bool:
        async with session.get(path, params={"n": outcome} if outcome == "miss" else None) as answer:
            assert SECURITY_HEADERS.items() <= dict(answer.headers).items()
            assert "Origin" in ", ".join(answer.headers.getall("Vary"))
            assert "Access-Control-Allow-Origin" not in answer.headers
            return answer.headers["Relaydesk-Cache"] == outcome

    await eventually(asked)
    for scheme in ("http", "https"):
        async with session.get(path, headers={"X-Forwarded-For": CLIENT, "X-Forwarded-Proto": scheme}) as answer:
            assert answer.status == 200
            assert (HSTS in answer.headers) is (scheme == "https")
    for origin in (ORIGIN, FOREIGN, None):
        async with session.get(path, headers={"Origin": origin} if origin else {}) as answer:
            assert answer.headers.get("Access-Control-Allow-Origin") == (origin if origin == ORIGIN else None)


async def test_bytes_that_are_no_request(gateway: TestedService) -> None:
    async with connection(gateway.port) as client:
        await client.send(b"no request\r\n\r\n")
        reply = await client.reply()
        told = {name.lower(): value for name, value in SECURITY_HEADERS.items()}
        assert (told | {"cache-control": "no-store"}).items() <= reply.headers.items()


async def test_errors_may_be_read_by_an_allowed_page(session: aiohttp.ClientSession) -> None:
    for path in ("/api/tickets?limit=x", "/nothing", "/api/tickets/1"):
        async with session.get(path, headers={"Origin": ORIGIN}) as answer:
            assert answer.status >= 400
            assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"


async def test_a_preflight_asks_no_service(stack: Stack, tmp_path: Path) -> None:
    async with noting_upstream() as upstream:
        urls = dict.fromkeys(("GATEWAY_TICKETS_URL", "GATEWAY_SEARCH_URL", "GATEWAY_NOTIFIER_URL"), upstream.url)
        async with (
            running_service(
                stack, "gateway", tmp_path / "log", script=(), GATEWAY_ALLOWED_ORIGINS=ORIGIN, **urls
            ) as gateway,
            aiohttp.ClientSession(gateway.url) as session,
        ):
            asked = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "if-match"}
            for path in ("/api/tickets/01890a5d-ac96-774b-bcce-b302099a8057", "/api/session", "/api/tickets/bulk"):
                for origin in (ORIGIN, FOREIGN):
                    async with session.options(path, headers={"Origin": origin, **asked}) as answer:
                        assert answer.status == 204
                        allowed = answer.headers.get("Access-Control-Allow-Origin")
                        assert allowed == (origin if origin == ORIGIN else None)
                        assert answer.headers["Vary"] == "Origin"
            assert upstream.asked == []


async def test_without_allowed_origins_there_is_no_cors(desk: Desk) -> None:
    reply = await desk.ask("GET", "/api/openapi.json", headers={"Origin": ORIGIN})
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert reply.headers["vary"] == "Accept-Encoding"
    reply = await desk.ask("OPTIONS", "/api/tickets", headers={"Origin": ORIGIN})
    assert reply.status == 405


async def test_the_log_tells_the_client_behind_the_proxies(
    session: aiohttp.ClientSession, ticket: str, log: Path
) -> None:
    for path in ("/nothing", f"/api/tickets/{ticket}", f"/api/tickets/{ticket}"):
        headers = {"X-Forwarded-For": f"203.0.113.250, {CLIENT}, 127.0.0.9", "Forwarded": "for=203.0.113.251"}
        async with session.get(path, headers=headers) as answer:
            await answer.read()

    async def told() -> bool:
        return len([line for line in _requests(log) if line["client"] == CLIENT]) >= 3

    await eventually(told)
    assert not {"203.0.113.250", "203.0.113.251"} & {line["client"] for line in _requests(log)}


async def test_a_client_that_is_no_proxy_is_not_believed(desk: Desk) -> None:
    reply = await desk.ask("GET", "/nothing", headers={"X-Forwarded-For": CLIENT, "X-Forwarded-Proto": "https"})
    assert reply.status == 404
    assert HSTS.lower() not in reply.headers

    async def told() -> bool:
        lines = _requests(desk.logs[2])
        return bool(lines) and all(line["client"] == "127.0.0.1" for line in lines)

    await eventually(told)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_cookie_that_came_over_https_stays_there(gateway: TestedService, desk: Desk, scheme: str) -> None:
    user = desk.acme.users[0]
    asked = {"organization": desk.acme.slug, "email": user["email"], "password": user["password"]}
    async with (
        aiohttp.ClientSession(gateway.url) as session,
        session.post("/api/session", json=asked, headers={"X-Forwarded-Proto": scheme}) as answer,
    ):
        assert answer.status == 201
        assert ("Secure" in answer.headers["Set-Cookie"]) is (scheme == "https")


def _requests(log: Path) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "request"]

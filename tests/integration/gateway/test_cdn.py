"""The CDN's nginx before a real gateway: what is public is kept and can be purged, what is private never is."""

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from infra.cdn.purge import purge
from infra.local.stack import Stack
from tests.support.cdn import CARELESS, Cdn, nginx, running_cdn
from tests.support.clients import Tenant
from tests.support.desk import Desk
from tests.support.processes import TestedService, running_service
from tests.support.tickets import eventually

DOCUMENT = "/api/openapi.json"
OTHER_VERSION = ("-m", "tests.support.gateway_of_version")
PRIVATE = ("/api/tickets", "/api/session", "/api/keys", "/api/audit", "/api/search?q=secret", "/api/reports/backlog")


@pytest.fixture(scope="module", autouse=True)
def _needs_nginx() -> None:
    nginx()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cdn(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cdn]:
    async with running_cdn(tmp_path_factory.mktemp("cdn") / "nginx", desk.gateways[0].port) as running:
        yield running


@contextlib.asynccontextmanager
async def client(url: str, tenant: Tenant | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url, headers=tenant.headers if tenant else None) as session:
        yield session


async def fetched(gateway: TestedService, route: str = DOCUMENT) -> float:
    """How often the gateway was asked for `route`."""
    async with client(gateway.url) as session, session.get("/metrics") as answer:
        text = await answer.text()
    found = re.findall(rf'^http_request_duration_ms_count{{.*route="{re.escape(route)}".*}} (\S+)$', text, re.MULTILINE)
    return sum(map(float, found))


async def test_what_is_public_is_asked_for_once(cdn: Cdn, desk: Desk) -> None:
    before = await fetched(desk.gateways[0])
    async with client(cdn.url) as session:

        async def get() -> tuple[str, bytes]:
            async with session.get(DOCUMENT) as answer:
                assert answer.status == 200
                assert answer.headers["Cache-Control"] == "public, max-age=300"
                assert "Surrogate-Key" not in answer.headers, "between the gateway and the CDN"
                return answer.headers["X-Cache"], await answer.read()

        told = await asyncio.gather(*(get() for _ in range(20)))
        assert await get() == ("HIT", told[0][1])
    assert {"MISS"} < {outcome for outcome, _body in told} <= {"MISS", "HIT"}
    assert len({body for _outcome, body in told}) == 1
    assert await fetched(desk.gateways[0]) == before + 1


async def test_an_encoding_and_a_revalidation_are_the_cdns_own_business(cdn: Cdn) -> None:
    async with client(cdn.url) as session:
        bodies = []
        for coding in ("identity", "gzip", "br"):
            for outcome in ("MISS", "HIT"):
                async with session.get(DOCUMENT + "?codings", headers={"Accept-Encoding": coding}) as answer:
                    assert answer.headers["X-Cache"] == outcome, coding
                    assert answer.headers.get("Content-Encoding", "identity") == coding
                    bodies.append(await answer.read())
                    etag = answer.headers["ETag"]
        assert len(set(bodies)) == 1
        async with session.get(
            DOCUMENT + "?codings", headers={"Accept-Encoding": "br", "If-None-Match": etag}
        ) as answer:
            assert (answer.status, answer.headers["X-Cache"]) == (304, "HIT")


async def test_credentials_are_not_sent_for_what_is_public(cdn: Cdn, desk: Desk) -> None:
    cookies = {"relaydesk_session": "x"}
    async with (
        client(cdn.url, desk.acme) as session,
        session.get(DOCUMENT + "?credentials", cookies=cookies) as answer,
    ):
        first = answer.headers["X-Cache"]
        body = await answer.read()
    async with client(cdn.url) as session, session.get(DOCUMENT + "?credentials") as answer:
        assert (first, answer.headers["X-Cache"]) == ("MISS", "HIT")
        assert await answer.read() == body


@pytest.mark.parametrize("changes", [{}, CARELESS], ids=["as it is", "one that stores whatever it may"])
async def test_what_is_private_is_kept_nowhere(desk: Desk, tmp_path: Path, changes: dict[str, str]) -> None:
    """The second CDN holds to the gateway's headers alone: they must suffice."""
    tenants = (desk.acme, desk.other)
    secrets = [f"secret of {tenant.slug}" for tenant in tenants]
    async with (
        running_cdn(tmp_path / "nginx", desk.gateways[0].port, changes) as cdn,
        contextlib.AsyncExitStack() as opened,
    ):
        sessions = [await opened.enter_async_context(client(cdn.url, tenant)) for tenant in (*tenants, None)]
        paths = list(PRIVATE)
        for session, secret in zip(sessions[:2], secrets, strict=True):
            async with session.post("/api/tickets", json={"title": secret}) as answer:
                assert answer.status == 201
                ticket = (await answer.json())["id"]
                paths += [f"/api/tickets/{ticket}", f"/api/tickets/{ticket}/comments"]
        for path in (*paths, *paths, "/api/health", "/livez", "/api/nothing", "/assets/nothing"):
            told = []
            for session in sessions:
                async with session.get(path) as answer:
                    assert answer.headers["X-Cache"] in {"PASS", "MISS"}, path
                    control = answer.headers["Cache-Control"]
                    assert "no-store" in control or control == "private, no-cache", path
                    told.append(await answer.text())
                    if path in paths and session is sessions[2]:
                        assert answer.status == 401
            for position, secret in enumerate(secrets):
                assert not any(secret in text for number, text in enumerate(told) if number != position), path
            if path == "/api/tickets":
                assert all(secret in text for secret, text in zip(secrets, told[:2], strict=True))
        assert cdn.kept() == []


async def test_the_gateway_still_sees_conditions_and_who_asks(cdn: Cdn, desk: Desk) -> None:
    async with client(cdn.url, desk.acme) as session:
        async with session.post("/api/tickets", json={"title": "t", "description": "d"}) as answer:
            ticket, etag = (await answer.json())["id"], answer.headers["ETag"]
        async with session.get(f"/api/tickets/{ticket}") as answer:
            etag = answer.headers["ETag"]
        async with session.get(f"/api/tickets/{ticket}", headers={"If-None-Match": etag}) as answer:
            assert answer.status == 304
        async with session.patch(f"/api/tickets/{ticket}", json={"title": "u"}, headers={"If-Match": '"9"'}) as answer:
            assert answer.status == 412


async def test_a_purge_by_surrogate_key_shows_what_is_new(stack: Stack, desk: Desk, tmp_path: Path) -> None:
    async with (
        versioned(stack, desk, tmp_path, max_age=300) as (gateway, environment),
        running_cdn(tmp_path / "nginx", gateway.port) as cdn,
        client(cdn.url) as session,
    ):

        async def version(path: str = DOCUMENT) -> tuple[str, str]:
            async with session.get(path, headers={"Accept-Encoding": "identity"}) as answer:
                assert answer.status == 200
                return answer.headers["X-Cache"], re.findall(r"\d\.1\.1|$", await answer.text())[0]

        assert await version() == ("MISS", "1.1.1")
        async with session.get(DOCUMENT, headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["X-Cache"] == "MISS", "another variant"
        assert await version("/api/docs") == ("MISS", "1.1.1")
        await gateway.stop()
        environment["VERSION"] = "2.1.1"
        await gateway.start()
        assert await version() == ("HIT", "1.1.1"), "as long as nobody purges"
        assert purge(cdn.cache, ["open", "api"]) == 0
        assert await version() == ("HIT", "1.1.1")
        assert await purged_by_command(cdn.cache, "openapi") == "2 answers purged"
        assert await version() == ("MISS", "2.1.1")
        assert await version() == ("HIT", "2.1.1")
        assert await version("/api/docs") == ("HIT", "1.1.1"), "it has another key"
        assert purge(cdn.cache, ["other", "docs"]) == 1
        assert await version("/api/docs") == ("MISS", "2.1.1")


async def test_what_is_stale_is_given_while_the_gateway_is_away(stack: Stack, desk: Desk, tmp_path: Path) -> None:
    async with (
        versioned(stack, desk, tmp_path, max_age=1) as (gateway, _environment),
        running_cdn(tmp_path / "nginx", gateway.port) as cdn,
        client(cdn.url) as session,
    ):
        async with session.get(DOCUMENT) as answer:
            body = await answer.read()
        await gateway.stop()

        async def stale() -> bool:
            async with session.get(DOCUMENT) as answer:
                assert answer.status == 200
                assert await answer.read() == body
                return answer.headers["X-Cache"] == "STALE"

        await eventually(stale)
        async with session.get("/api/tickets") as answer:
            assert answer.status == 502, "nothing is made up for what is private"


@contextlib.asynccontextmanager
async def versioned(
    stack: Stack, desk: Desk, folder: Path, *, max_age: int
) -> AsyncIterator[tuple[TestedService, dict[str, str]]]:
    """A gateway that describes itself as version 1.1.1, and the environment with which it is started again."""
    settings = {"GATEWAY_TICKETS_URL": desk.tickets.url, "VERSION": "1.1.1", "MAX_AGE": str(max_age)}
    log = folder / "gateway.log"
    async with running_service(stack, "gateway", log, script=OTHER_VERSION, **settings) as gateway:
        environment = gateway._environment()
        gateway._environment = lambda: environment
        yield gateway, environment


async def purged_by_command(cache: Path, *keys: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "infra.cdn", "purge", "--cache", str(cache), "--settle", "0.1", *keys),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().strip()

"""What `GET /api/health` tells when something is away, of real servers and processes."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from aiohttp.test_utils import make_mocked_request

from infra.local.stack import Stack
from services.gateway.routes import health
from services.gateway.routes.health import HealthRoute
from tests.support.clients import Tenant, provision
from tests.support.desk import Reply, exchange
from tests.support.processes import TestedService, running_service
from tests.support.tickets import eventually

NAMES = ("database", "redis", "disk", "cache", "kafka", "replicas", "search", "notifier")
# What is away, which checks fail, and which may fail as well.
FAULTS: dict[str, tuple[set[str], set[str]]] = {
    "postgres": ({"database"}, {"search", "replicas"}),
    "tickets": ({"database", "kafka", "replicas"}, set()),
    "redis": ({"redis"}, set()),
    "cache-redis": ({"cache"}, set()),
    "kafka": ({"kafka"}, {"search"}),
    "replica-1": ({"replicas"}, set()),
    "search": ({"search"}, set()),
    "notifier": ({"notifier"}, set()),
}
LOCK = "BEGIN; LOCK TABLE documents IN ACCESS EXCLUSIVE MODE"
REQUEST = b"GET /api/health HTTP/1.1\r\nHost: desk\r\nConnection: close\r\n\r\n"


class Platform:
    """All services."""

    def __init__(self, stack: Stack, tenant: Tenant, services: dict[str, TestedService]) -> None:
        self._stack = stack
        self.services = services
        self.tenant = tenant

    async def health(self) -> Reply:
        return await exchange(self.services["gateway"].port, REQUEST)

    async def failed(self) -> set[str]:
        """The checks that have failed; the answer is in itself right."""
        reply = await self.health()
        body = reply.json()
        failed = {check["name"] for check in body["checks"] if check["status"] != "ok"}
        degraded = bool(failed & {"database", "redis", "disk"})
        assert (reply.status, body["status"]) == ((503, "degraded") if degraded else (200, "ok"))
        assert reply.headers["cache-control"] == "no-store"
        assert [check["name"] for check in body["checks"]] == list(NAMES)
        return failed

    async def all_ok(self) -> bool:
        return not await self.failed()

    @contextlib.asynccontextmanager
    async def without(self, name: str) -> AsyncIterator[None]:
        part = self.services.get(name) or self._stack.parts[name]
        await part.stop()
        try:
            yield
        finally:
            await part.start()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def platform(stack: Stack, topic: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    folder: Path = tmp_path_factory.mktemp("health")
    async with contextlib.AsyncExitStack() as running:

        async def run(name: str, **environment: str) -> TestedService:
            log = folder / f"{name}.log"
            return await running.enter_async_context(running_service(stack, name, log, script=(), **environment))

        tickets = await run("tickets", TICKETS_TOPIC_PARTITIONS="3")
        services = {"tickets": tickets, "search": await run("search", SEARCH_TICKETS_URL=tickets.url)}
        services["notifier"] = await run("notifier")
        urls = {f"GATEWAY_{name.upper()}_URL": service.url for name, service in services.items()}
        services["gateway"] = await run("gateway", **urls)
        yield Platform(stack, await provision(stack), services)


async def test_a_platform_that_is_well_says_what_it_has_looked_at(platform: Platform) -> None:
    await eventually(platform.all_ok)
    checks = (await platform.health()).json()["checks"]
    assert {check["name"] for check in checks if not check["informational"]} == {"database", "redis", "disk"}
    details = {check["name"]: check["detail"] for check in checks}
    assert details["replicas"] == "2 of 2 usable"
    assert re.fullmatch(r"search-index is [\d.]+ s behind, search-invalidate is [\d.]+ s behind", details["search"])


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_away_is_told_and_only_database_redis_and_disk_make_it_degraded(
    platform: Platform, fault: str
) -> None:
    must, may = FAULTS[fault]
    await eventually(platform.all_ok, seconds=60)

    async def told() -> bool:
        failed = await platform.failed()
        return must <= failed <= must | may

    async with platform.without(fault):
        await eventually(told)
    await eventually(platform.all_ok, seconds=90)


@pytest.mark.parametrize(("frozen", "check"), [("redis", "redis"), ("kafka", "kafka"), ("postgres", "database")])
async def test_what_hangs_costs_its_own_check_two_seconds_and_no_other(
    stack: Stack, platform: Platform, frozen: str, check: str
) -> None:
    await eventually(platform.all_ok, seconds=60)

    async def told() -> bool:
        return check in await platform.failed()

    stack.pause(frozen)
    try:
        await eventually(told)
        found = {one["name"]: one for one in (await platform.health()).json()["checks"]}
    finally:
        stack.resume(frozen)
    assert found[check]["duration_ms"] < 1000 * health.CHECK_SECONDS * 2
    assert found["disk"]["status"] == found["cache"]["status"] == found["notifier"]["status"] == "ok"
    await eventually(platform.all_ok, seconds=90)


async def test_an_index_that_does_not_follow_is_told_in_seconds(stack: Stack, platform: Platform) -> None:
    await eventually(platform.all_ok, seconds=60)
    locking = await asyncpg.connect(stack.primary.url("search", superuser=True))
    try:
        await locking.execute(LOCK)
        head = f"POST /api/tickets HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer {platform.tenant.key}\r\n"
        body = b'{"title": "Late"}'
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        assert (await exchange(platform.services["gateway"].port, head.encode() + body)).status == 201
        await eventually(lambda: lags(platform, lambda seconds: seconds >= 2))
    finally:
        await locking.close()
    await eventually(lambda: lags(platform, lambda seconds: seconds == 0), seconds=60)


async def lags(platform: Platform, enough: Any) -> bool:
    details = {check["name"]: check["detail"] for check in (await platform.health()).json()["checks"]}
    behind = re.match(r"search-index is ([\d.]+) s behind", details["search"])
    return behind is not None and enough(float(behind[1]))


class Counted:
    """A check that waits until it is let go."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()

    async def check(self) -> str:
        self.asked += 1
        await self.go.wait()
        return "answers"


def route_with(name: str, check: Any = None) -> HealthRoute:
    nothing: Any = None
    route = HealthRoute(redis=nothing, cache_redis=nothing, tickets=nothing, search=nothing, notifier=nothing)
    route._checks = {name: check or route._checks[name]}
    return route


async def status(route: HealthRoute) -> int:
    return (await route.get(make_mocked_request("GET", "/api/health"))).status


async def test_many_probes_ask_no_more_than_one() -> None:
    counted = Counted()
    route = route_with("redis", counted.check)
    asked = [asyncio.create_task(status(route)) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked[0].cancel()  # the one who began it
    counted.go.set()
    assert await asyncio.gather(*asked[1:]) == [200] * 49
    assert await status(route) == 200
    assert counted.asked == 1
    assert 0 < route._remembered_until - time.monotonic() <= health.REMEMBERED_SECONDS
    route._remembered_until = time.monotonic() - 0.01
    assert await status(route) == 200
    assert counted.asked == 2


@pytest.mark.parametrize(("share", "expected"), [(0.0, 200), (1.01, 503)])
async def test_a_disk_that_is_nearly_full_makes_it_degraded(
    monkeypatch: pytest.MonkeyPatch, share: float, expected: int
) -> None:
    monkeypatch.setattr(health, "DISK_FREE_SHARE", share)
    assert await status(route_with("disk")) == expected

"""`GET /api/health`: database, Redis, disk and the services behind the gateway."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web
from redis.asyncio import Redis

from libs.common.service import json_response
from services.gateway.upstream import Upstream

CHECK_SECONDS = 2.0
_DISK_FREE_SHARE = 0.05


class Check(msgspec.Struct, frozen=True):
    """`status` is `ok` or `failed`; `detail` says in a few words what was found."""

    name: str
    status: str
    detail: str
    duration_ms: float


class Health(msgspec.Struct, frozen=True):
    status: str
    checks: list[Check]


class HealthRoute:
    def __init__(
        self, *, redis: Redis, cache_redis: Redis, tickets: Upstream, search: Upstream, notifier: Upstream
    ) -> None:
        self._checks: dict[str, Callable[[], Awaitable[str]]] = {
            "database": lambda: _answers(tickets, "/internal/health"),
            "redis": lambda: _pings(redis),
            "cache": lambda: _pings(cache_redis),
            "disk": _disk,
            "tickets": lambda: _answers(tickets, "/readyz"),
            "search": lambda: _answers(search, "/readyz"),
            "notifier": lambda: _answers(notifier, "/readyz"),
        }

    async def get(self, _request: web.Request) -> web.Response:
        checks = await asyncio.gather(*(_run(name, check) for name, check in self._checks.items()))
        healthy = all(check.status == "ok" for check in checks)
        return json_response(
            Health("ok" if healthy else "degraded", list(checks)),
            status=200 if healthy else 503,
            headers={"Cache-Control": "no-store"},
        )


async def _run(name: str, check: Callable[[], Awaitable[str]]) -> Check:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            detail = await check()
        status = "ok"
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the finding; its type says enough and no secret)
        status, detail = "failed", f"does not answer ({type(error).__name__})"
    return Check(name, status, detail, round((time.perf_counter() - started) * 1000, 2))


async def _answers(upstream: Upstream, path: str) -> str:
    answer = await upstream.call("GET", path, principal=None, seconds=CHECK_SECONDS)
    if answer.status != 200:
        raise ConnectionError(str(answer.status))
    return "answers"


async def _pings(redis: Redis) -> str:
    await redis.ping()
    return "answers"


async def _disk() -> str:
    usage = await asyncio.to_thread(shutil.disk_usage, "/")
    share = usage.free / usage.total
    if share < _DISK_FREE_SHARE:
        raise OSError("full")
    return f"{share:.0%} free"

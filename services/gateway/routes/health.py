"""`GET /api/health`: database, Redis and disk decide; the rest is for information."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web
from redis.asyncio import Redis

from libs.common.problems import ProblemDetails
from services.gateway.upstreams.upstream import Upstream

CHECK_SECONDS = 2.0
REMEMBERED_SECONDS = 1.0
DISK_FREE_SHARE = 0.05
DECIDING = frozenset({"database", "redis", "disk"})


class Check(msgspec.Struct, frozen=True):
    """`status` is `ok` or `failed`; `detail` says in a few words what was found.

    The platform is degraded when a check has failed that is not `informational`.
    """

    name: str
    status: str
    detail: str
    duration_ms: float
    informational: bool


class Health(msgspec.Struct, frozen=True):
    status: str
    checks: list[Check]


class _Told(msgspec.Struct, frozen=True):
    """What a service says of what it alone can see."""

    detail: str


class _FailedError(Exception):
    """A check that has failed; the text is what was found."""


_told = msgspec.json.Decoder(_Told)
_problem = msgspec.json.Decoder(ProblemDetails)


class HealthRoute:
    """Whoever asks within a second of an answer gets the same, so that many probes ask no more than one."""

    def __init__(
        self, *, redis: Redis, cache_redis: Redis, tickets: Upstream, search: Upstream, notifier: Upstream
    ) -> None:
        self._checks: dict[str, Callable[[], Awaitable[str]]] = {
            "database": lambda: _told_by(tickets, "/internal/health"),
            "redis": lambda: _pings(redis),
            "disk": _disk,
            "cache": lambda: _pings(cache_redis),
            "kafka": lambda: _told_by(tickets, "/internal/health/kafka"),
            "replicas": lambda: _told_by(tickets, "/internal/health/replicas"),
            "search": lambda: _told_by(search, "/internal/health"),
            "notifier": lambda: _is_ready(notifier),
        }
        self._asked: asyncio.Task[tuple[int, bytes]] | None = None
        self._remembered_until = 0.0

    async def get(self, _request: web.Request) -> web.Response:
        if self._asked is None or (self._asked.done() and time.monotonic() > self._remembered_until):
            self._asked = asyncio.create_task(self._run())
        status, body = await asyncio.shield(self._asked)  # others wait for it as well
        return web.Response(
            body=body, status=status, content_type="application/json", headers={"Cache-Control": "no-store"}
        )

    async def _run(self) -> tuple[int, bytes]:
        checks = await asyncio.gather(*(_run(name, check) for name, check in self._checks.items()))
        healthy = all(check.status == "ok" or check.informational for check in checks)
        self._remembered_until = time.monotonic() + REMEMBERED_SECONDS
        body = msgspec.json.encode(Health("ok" if healthy else "degraded", list(checks)))
        return (200 if healthy else 503), body


async def _run(name: str, check: Callable[[], Awaitable[str]]) -> Check:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            detail = await check()
        status = "ok"
    except _FailedError as error:
        status, detail = "failed", str(error)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the finding; its type says enough and no secret)
        status, detail = "failed", f"does not answer ({type(error).__name__})"
    milliseconds = round((time.perf_counter() - started) * 1000, 2)
    return Check(name, status, detail, milliseconds, informational=name not in DECIDING)


async def _told_by(upstream: Upstream, path: str) -> str:
    answer = await upstream.call("GET", path, principal=None, seconds=CHECK_SECONDS)
    if answer.status != 200:
        raise _FailedError(_problem.decode(answer.body).detail or f"answers {answer.status}")
    return _told.decode(answer.body).detail


async def _is_ready(upstream: Upstream) -> str:
    answer = await upstream.call("GET", "/readyz", principal=None, seconds=CHECK_SECONDS)
    if answer.status != 200:
        raise _FailedError("is not ready")
    return "is ready"


async def _pings(redis: Redis) -> str:
    await redis.ping()
    return "answers"


async def _disk() -> str:
    usage = await asyncio.to_thread(shutil.disk_usage, "/")
    share = usage.free / usage.total
    told = f"{share:.0%} free"
    if share < DISK_FREE_SHARE:
        raise _FailedError(told)
    return told

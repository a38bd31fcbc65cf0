"""`make profile`: where the CPU of a request goes, on the real stack, by sampling the service that answers it.

For each kind of request: the CPU it costs the service (user and system, from /proc, measured before anything samples),
and the share of each part (py-spy, 400 samples a second). A sample belongs to the innermost frame that a part names,
so that what a library does for another is that one's. Sampling stops the process for a moment and finds it more often
at system calls than it is there: the shares are to find one's way, the CPU times are to compare.
"""

import asyncio
import collections
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import psutil
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from infra.local.stack import Stack
from tests.bench import create
from tests.bench.figures import Load, internal_headers, wrk
from tests.bench.gateway import IN_TURN, UNIQUE, created
from tests.support.clients import Tenant, client, provision
from tests.support.processes import TestedService, running_service

SAMPLES_A_SECOND = 400
WARM_UP_SECONDS = 1.0
# Parts by what a frame's function and file contain, the first that fits.
PARTS: Mapping[str, tuple[str, ...]] = {
    "PostgreSQL: driver, socket, transaction": ("asyncpg/", "common/lending", "common/postgres", "query_metrics"),
    "Redis: client and socket": ("redis/", "cache/joined"),
    "the relay and its producer": ("aiokafka/", "tickets/relay", "common/kafka"),
    "asking the servers where they stand": ("tickets/servers",),
    "asking the tickets service": ("gateway/upstreams", "aiohttp/client", "aiohttp/connector"),
    "log line, span, histogram": ("common/logs", "request_records", "common/tracing", "opentelemetry", "prometheus_"),
    "writing the answer": ("aiohttp/web_response", "finish_response", "Connection._is_answered"),
    "the cache": ("common/cache",),
    "credential, limit, request parsing": ("gateway/callers", "gateway/limits", "gateway/edge", "common/identity"),
    "aiohttp's server and the guard of its connections": ("aiohttp/", "common/connections", "common/timeouts"),
    "handlers": ("services/", "libs/"),
}
NOBODYS = ("aiohttp/http_writer", "aiohttp/helpers")  # of whoever calls them: server or client
LOOP = "the event loop: waiting, reading, turns"

Drive = Callable[[float], Awaitable[Load]]


class Scene(NamedTuple):
    """A kind of request: the process that answers it, and what loads it for some seconds."""

    pid: int
    drive: Drive


@asynccontextmanager
async def creating(stack: Stack, tenants: list[Tenant], folder: Path) -> AsyncIterator[Scene]:
    """Creations at the tickets service, the relay embedded."""
    async with running_service(stack, "tickets", folder / "create.log") as service:
        headers = [internal_headers(stack, tenant) for tenant in tenants]
        yield Scene(_pid(service), lambda seconds: create.load(service.url, headers, seconds))


@asynccontextmanager
async def reading(stack: Stack, tenants: list[Tenant], folder: Path) -> AsyncIterator[Scene]:
    """One ticket read at the tickets service."""
    async with client(stack, tenants[0]) as http:
        path = await created(http)
    async with running_service(stack, "tickets", folder / "read.log") as service:
        headers = internal_headers(stack, tenants[0])
        yield Scene(_pid(service), lambda seconds: wrk(service.url + path, seconds, headers=headers))


@asynccontextmanager
async def hitting(stack: Stack, tenants: list[Tenant], folder: Path) -> AsyncIterator[Scene]:
    """L1 hits."""
    async with client(stack, tenants[0]) as http, _gateway(stack, folder / "hit.log") as gateway:
        url = gateway.url + await created(http)
        yield Scene(_pid(gateway), lambda seconds: wrk(url, seconds, headers=tenants[0].headers))


@asynccontextmanager
async def hitting_l2(stack: Stack, tenants: list[Tenant], folder: Path) -> AsyncIterator[Scene]:
    """L2 hits: more tickets in turn than L1 holds."""
    async with client(stack, tenants[0]) as http:
        paths = [await created(http) for _ in range(8)]
    script = folder / "in_turn.lua"
    script.write_text(IN_TURN.format(paths=", ".join(map(json.dumps, paths))))
    async with _gateway(stack, folder / "l2.log", GATEWAY_CACHE_L1_ITEMS="1") as gateway:
        yield Scene(_pid(gateway), lambda s: wrk(gateway.url, s, headers=tenants[0].headers, script=script))


@asynccontextmanager
async def missing(stack: Stack, tenants: list[Tenant], folder: Path) -> AsyncIterator[Scene]:
    """Reads that are in neither level: each asks a query of its own."""
    async with client(stack, tenants[0]) as http:
        path = await created(http)
    script = folder / "unique.lua"
    script.write_text(UNIQUE.format(path=path, salt=id(folder)))
    async with _gateway(stack, folder / "miss.log") as gateway:
        yield Scene(_pid(gateway), lambda s: wrk(gateway.url, s, headers=tenants[0].headers, script=script))


SCENES = {"create": creating, "read": reading, "hit": hitting, "l2": hitting_l2, "miss": missing}


def main(
    only: Annotated[list[str] | None, typer.Argument(help=f"Which of: {', '.join(SCENES)}; all by default.")] = None,
    seconds: Annotated[float, typer.Option(help="How long each is sampled.")] = 8.0,
) -> None:
    """Profile and print one table for each kind of request."""
    console = Console(stderr=True)
    if unknown := [name for name in only or () if name not in SCENES]:
        console.print(f"There is no profile {', '.join(unknown)}; there are {', '.join(SCENES)}.")
        sys.exit(2)
    if shutil.which("wrk") is None:
        console.print("Profiles need wrk, the HTTP load generator: apt-get install wrk")
        sys.exit(2)
    uvloop.run(run(console, only or list(SCENES), seconds))


async def run(console: Console, names: Iterable[str], seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="relaydesk-profile-") as temporary:
        folder = Path(temporary)
        stack = Stack(folder / "stack", replicas=1)
        try:
            console.print("starting the stack …")
            async with stack:
                tenants = [await provision(stack, agents=0) for _ in range(create.ORGANIZATIONS)]
                for name in names:
                    console.print(f"{name}: {seconds:g} s")
                    async with SCENES[name](stack, tenants, folder) as scene:
                        Console(width=100).print(await _profiled(name, scene, seconds, folder / f"{name}.raw"))
        finally:
            stack.remove()


async def _profiled(name: str, scene: Scene, seconds: float, raw: Path) -> Table:
    await scene.drive(WARM_UP_SECONDS)
    process = psutil.Process(scene.pid)
    before = process.cpu_times()
    load = await scene.drive(seconds)
    after = process.cpu_times()
    user, system = ((new - old) * 1e6 / (load.rate * seconds) for new, old in zip(after[:2], before[:2], strict=True))
    _load, () = await asyncio.gather(scene.drive(seconds + 2), _sample(scene.pid, seconds, raw))
    table = Table(title=f"{name}: {user + system:.0f} µs of CPU a request (user {user:.0f}, system {system:.0f})")
    table.add_column("part")
    table.add_column("share", justify="right")
    shares = parts_of(await asyncio.to_thread(lambda: raw.read_text().splitlines()))
    for part, share in sorted(shares.items(), key=lambda item: -item[1]):
        table.add_row(part, f"{100 * share:.1f} %")
    return table


async def _sample(pid: int, seconds: float, raw: Path) -> tuple[()]:
    sampler = str(Path(sys.executable).with_name("py-spy"))
    process = await asyncio.create_subprocess_exec(
        *(sampler, "record", "--pid", str(pid), "--rate", str(SAMPLES_A_SECOND), "--duration", f"{seconds:.0f}"),
        *("--format", "raw", "--output", str(raw)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _out, told = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"py-spy could not sample process {pid} (it needs to be its parent or root): {told.decode()}")
    return ()


def parts_of(stacks: Iterable[str]) -> dict[str, float]:
    """The share of each part in stacks as py-spy writes them: frames from the outermost, `;` between, and a count."""
    counts: collections.Counter[str] = collections.Counter()
    for line in stacks:
        frames, _, count = line.rpartition(" ")
        counts[_part(frames.split(";"))] += int(count)
    total = counts.total()
    return {part: count / total for part, count in counts.items()}


def _part(frames: list[str]) -> str:
    for frame in reversed(frames):
        if "serving" in frame or "__main__" in frame:  # what runs the loop
            break
        if any(name in frame for name in NOBODYS):
            continue
        for part, names in PARTS.items():
            if any(name in frame for name in names):
                return part
    return LOOP


@asynccontextmanager
async def _gateway(stack: Stack, log: Path, **settings: str) -> AsyncIterator[TestedService]:
    limits = {"GATEWAY_LIMIT_CREDENTIAL": "0", "GATEWAY_LIMIT_ORGANIZATION": "0"}
    async with running_service(stack, "gateway", log, script=(), **limits, **settings) as gateway:
        yield gateway


def _pid(service: TestedService) -> int:
    assert service.process is not None
    return service.process.pid


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    typer.run(main)

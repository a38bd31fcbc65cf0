"""What the gateway costs: its hits beside an empty handler, what it hands on beside the service that it asks.

The empty handler and nginx give the same bytes and headers as the gateway; they know no credentials, limits, tags,
metrics or logs.
"""

import asyncio
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop
from aiohttp import ClientError, ClientSession, web

from infra.local.ports import HOST, free_ports
from infra.local.stack import Stack
from tests.bench.figures import Figure, internal_headers, wrk
from tests.support.clients import Tenant, client
from tests.support.processes import running_service

WARM_UP_SECONDS = 1.0
IDLE_CONNECTIONS = 1000
_WRITTEN_BY_THE_SERVER = frozenset({"date", "server", "content-length", "content-type"})
# Every request another query: nothing is cached for it. The services ignore what they do not know.
UNIQUE = """
local count = 0
local path = "{path}"
request = function()
  count = count + 1
  return wrk.format("GET", path .. "?n={salt}" .. count)
end
"""
# As many paths in turn as an L1 of one entry never holds.
IN_TURN = """
local count, paths = 0, {{ {paths} }}
request = function()
  count = count + 1
  return wrk.format("GET", paths[count % #paths + 1])
end
"""
_NGINX_FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Sample(NamedTuple):
    """An answer of the gateway: what the baselines give."""

    path: str
    content: bytes
    headers: Mapping[str, str]


async def measure(stack: Stack, tenants: Sequence[Tenant], seconds: float) -> list[Figure]:
    tenant = tenants[0]
    async with client(stack, tenant) as http:
        paths = [await created(http) for _ in range(50)]
        async with http.get(paths[0]) as answer:
            sample = Sample(paths[0], await answer.read(), _copied(answer.headers))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [
            *await _hits(stack, tenant, sample, seconds, folder),
            *await _handed_on(stack, tenant, paths, seconds, folder),
            *await _idle(stack),
        ]


async def _hits(stack: Stack, tenant: Tenant, sample: Sample, seconds: float, folder: Path) -> list[Figure]:
    name = "bare aiohttp handler"
    url = stack.service_url("gateway") + sample.path
    conditional = tenant.headers | {"If-None-Match": '"1"'}
    async with _bare_handler(sample, folder) as bare_url, _nginx(sample, folder) as nginx_url:
        for target in (url, bare_url):
            await wrk(target, WARM_UP_SECONDS, headers=tenant.headers)
        ours = await wrk(url, seconds, headers=tenant.headers)
        bare = await wrk(bare_url, seconds, headers=tenant.headers)
        unmodified = await wrk(url, seconds, headers=conditional)
        bare_304 = await wrk(bare_url, seconds, headers=conditional)
        figures = [
            Figure("L1 hit through the gateway", ours.rate, bare.rate, name, "requests/s"),
            Figure("L1 hit: P99 at the client", ours.p99, bare.p99, name, "ms"),
            Figure("304 from L1", unmodified.rate, bare_304.rate, name, "requests/s"),
        ]
        async with running_service(
            stack, "gateway", folder / "l2.log", GATEWAY_CACHE_L1_ITEMS="1", GATEWAY_LIMIT_CREDENTIAL="0"
        ) as second:
            async with client(stack, tenant) as http:
                others = [await created(http) for _ in range(8)]
            script = folder / "in_turn.lua"
            script.write_text(IN_TURN.format(paths=", ".join(json.dumps(other) for other in others)))
            await wrk(second.url, WARM_UP_SECONDS, headers=tenant.headers, script=script)
            l2 = await wrk(second.url, seconds, headers=tenant.headers, script=script)
            figures.append(Figure("L2 hit through the gateway", l2.rate, bare.rate, name, "requests/s"))
            await wrk(second.url + sample.path, WARM_UP_SECONDS, headers=tenant.headers)
        for level, promised in (("l1", 1.0), ("l2", 10.0)):
            took = _p95(folder / "l2.log", level)
            figures.append(Figure(f"{level.upper()} hit: P95 in the process", took, promised, "promised", "ms"))
        if nginx_url is not None:
            outer = await wrk(nginx_url, seconds, headers=tenant.headers)
            figures.append(Figure("L1 hit, beside nginx", ours.rate, outer.rate, "nginx", "requests/s"))
    return figures


async def _handed_on(stack: Stack, tenant: Tenant, paths: Sequence[str], seconds: float, folder: Path) -> list[Figure]:
    gateway, tickets = stack.service_url("gateway"), stack.service_url("tickets")
    inside = internal_headers(stack, tenant)
    script = folder / "unique.lua"
    script.write_text(UNIQUE.format(path=paths[0], salt=id(folder)))
    uncached = await wrk(gateway + "/api/keys", seconds, headers=tenant.headers)
    direct_keys = await wrk(tickets + "/api/keys", seconds, headers=inside)
    missed = await wrk(gateway, seconds, headers=tenant.headers, script=script)
    direct = await wrk(tickets, seconds, headers=inside, script=script)
    name = "the tickets service asked directly"
    return [
        Figure("GET that is not cached, through the gateway", uncached.rate, direct_keys.rate, name, "requests/s"),
        Figure("GET that misses both levels", missed.rate, direct.rate, name, "requests/s"),
    ]


def _p95(log: Path, level: str) -> float:
    """The 95th percentile of how long requests answered from a level took, as a gateway's log has them."""
    records = (json.loads(line) for line in log.read_text().splitlines() if f'"cache":"{level}"' in line)
    return statistics.quantiles((float(record["duration_ms"]) for record in records), n=20)[-1]


async def _idle(stack: Stack) -> list[Figure]:
    """Memory of connections that are kept and ask nothing."""
    process = stack.parts["gateway"].process
    assert process is not None
    gateway = psutil.Process(process.pid)
    port = stack.parts["gateway"].port
    before = gateway.memory_info().rss
    opened = []
    try:
        for _ in range(IDLE_CONNECTIONS):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"GET /livez HTTP/1.1\r\nHost: bench\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            opened.append(writer)
        used = (gateway.memory_info().rss - before) / 2**20
    finally:
        for writer in opened:
            writer.close()
    return [Figure("memory of 1,000 idle connections", used, before / 2**20, "the gateway without them", "MB")]


async def created(http: ClientSession) -> str:
    async with http.post("/api/tickets", json={"title": "Read often", "description": "word " * 60}) as answer:
        return str(answer.headers["Location"])


def _copied(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _WRITTEN_BY_THE_SERVER}


@contextlib.asynccontextmanager
async def _bare_handler(sample: Sample, folder: Path) -> AsyncIterator[str]:
    (port,) = free_ports(1)
    body, head = folder / "body", folder / "headers.json"
    body.write_bytes(sample.content)
    head.write_text(json.dumps(dict(sample.headers)))
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, str(port), str(body), str(head))
    url = f"http://{HOST}:{port}/"
    try:
        await _answers(url)
        yield url
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def _nginx(sample: Sample, folder: Path) -> AsyncIterator[str | None]:
    """nginx with one worker; None where it is not installed."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if nginx is None:
        yield None
        return
    (port,) = free_ports(1)
    (folder / "answer").write_bytes(sample.content)
    given = [(name, value) for name, value in sample.headers.items() if name != "ETag"]
    added = "\n".join(f"add_header {name} {_quoted(value)};" for name, value in given)
    settings = folder / "nginx.conf"
    settings.write_text(
        f"""daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
        events {{ worker_connections 256; }}
        http {{
          access_log off; keepalive_requests 1000000000; open_file_cache max=10; default_type application/json;
          {"".join(f"{kind}_temp_path {folder}/{kind};" for kind in _NGINX_FOLDERS)}
          server {{ listen {HOST}:{port}; location / {{ root {folder}; try_files /answer =404; {added} }} }}
        }}"""
    )
    process = await asyncio.create_subprocess_exec(
        nginx, "-c", str(settings), "-p", str(folder), "-e", str(folder / "nginx.log")
    )
    url = f"http://{HOST}:{port}/"
    try:
        await _answers(url)
        yield url
    finally:
        process.terminate()
        await process.wait()


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


async def _answers(url: str) -> None:
    async with asyncio.timeout(30), ClientSession() as session:
        while True:
            try:
                async with session.get(url):
                    return
            except ClientError:
                await asyncio.sleep(0.05)


def serve(port: int, content: bytes, headers: Mapping[str, str]) -> None:
    """The baseline: one route, no middleware, the answer ready."""
    conditional = {name: value for name, value in headers.items() if name.lower() != "content-type"}

    async def handle(request: web.Request) -> web.Response:
        if "If-None-Match" in request.headers:
            return web.Response(status=304, headers=conditional)
        return web.Response(body=content, content_type="application/json", headers=headers)

    app = web.Application()
    app.router.add_get("/", handle)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    web.run_app(app, host=HOST, port=port, access_log=None, print=None)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]).read_bytes(), json.loads(Path(sys.argv[3]).read_text()))

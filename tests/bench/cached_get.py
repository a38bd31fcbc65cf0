"""A cached GET through the gateway beside a bare aiohttp handler that returns the same bytes."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from aiohttp import ClientError, ClientSession, web

from infra.local.ports import HOST, free_ports
from infra.local.stack import Stack
from tests.bench.figures import Figure, wrk
from tests.support.clients import Tenant, client

WARM_UP_SECONDS = 1.0


async def measure(stack: Stack, tenants: Sequence[Tenant], seconds: float) -> list[Figure]:
    tenant = tenants[0]
    async with client(stack, tenant) as http:
        body = {"title": "Read often", "description": "word " * 60}
        async with http.post("/api/tickets", json=body) as answer:
            path = answer.headers["Location"]
        async with http.get(path) as answer:
            content = await answer.read()
    url = stack.service_url("gateway") + path
    async with _bare_handler(content) as bare_url:
        for target in (url, bare_url):
            await wrk(target, WARM_UP_SECONDS, headers=tenant.headers)
        ours = await wrk(url, seconds, headers=tenant.headers)
        bare = await wrk(bare_url, seconds, headers=tenant.headers)
    name = "bare aiohttp handler"
    return [
        Figure("cached GET through the gateway", ours.rate, bare.rate, name, "requests/s"),
        Figure("cached GET: P99 at the client", ours.p99, bare.p99, name, "ms"),
    ]


@asynccontextmanager
async def _bare_handler(content: bytes) -> AsyncIterator[str]:
    (port,) = free_ports(1)
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        process = await asyncio.create_subprocess_exec(sys.executable, __file__, str(port), file.name)
        url = f"http://{HOST}:{port}/"
        try:
            async with asyncio.timeout(30), ClientSession() as session:
                while True:
                    try:
                        async with session.get(url):
                            break
                    except ClientError:
                        await asyncio.sleep(0.05)
            yield url
        finally:
            process.terminate()
            await process.wait()


def serve(port: int, content: bytes) -> None:
    """The baseline: one route, no middleware, the answer ready."""

    async def handle(_request: web.Request) -> web.Response:
        return web.Response(body=content, content_type="application/json", headers={"ETag": '"1"'})

    app = web.Application()
    app.router.add_get("/", handle)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    web.run_app(app, host=HOST, port=port, access_log=None, print=None)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]).read_bytes())

"""A small service that fails on demand: `python -m tests.support.faulty_service PORT` (0: a free one, which it prints).

`GET /told` tells how often each path was asked, how many streams are open and the last headers; SIGUSR1 makes it fail
every request with 503 as a broken proxy would, or not fail again; SIGTERM makes it drain, as the services do.
"""

import asyncio
import collections
import signal
import sys
from typing import Any

import uvloop
from aiohttp import web

from libs.common import deadlines

PART = b"x" * 65536
asked: collections.Counter[str] = collections.Counter()
state: dict[str, Any] = {"failing": False, "draining": False, "streams": 0, "headers": {}, "sent": 0}


async def told(_request: web.Request) -> web.Response:
    return web.json_response({**state, "asked": asked})


async def readyz(_request: web.Request) -> web.Response:
    return web.Response(status=503 if state["draining"] else 200)


async def ok(request: web.Request) -> web.Response:
    """Answers after `seconds`."""
    state["headers"] = dict(request.headers)
    await asyncio.sleep(float(request.query.get("seconds", 0)))
    return web.json_response({"port": request.url.port}, status=int(request.query.get("status", 200)))


async def later(_request: web.Request) -> web.Response:
    return web.json_response({}, status=503, headers={"Retry-After": "1"})


async def late(request: web.Request) -> web.Response:
    """Says itself that the caller's time is over."""
    await asyncio.sleep(int(request.headers[deadlines.HEADER]) / 1000)
    return web.json_response({}, status=504)


async def drop(request: web.Request) -> web.Response:
    """Closes the connection, after `sent` bytes of an answer."""
    assert request.transport is not None
    if request.query.get("sent"):
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await asyncio.sleep(0.05)
    request.transport.close()
    return web.Response()


async def nonsense(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.write(b"220 mail.example ESMTP\r\n\r\n")
    await asyncio.sleep(0.05)
    return web.Response()


async def large(request: web.Request) -> web.StreamResponse:
    """Many `parts`, with their length told or not."""
    parts = int(request.query["parts"])
    response = web.StreamResponse()
    if "told" in request.query:
        response.content_length = parts * len(PART)
    state["streams"] += 1
    try:
        await response.prepare(request)
        for _ in range(parts):
            await response.write(PART)
            state["sent"] += len(PART)
        await response.write_eof()
    finally:
        state["streams"] -= 1
    return response


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent events every `every` seconds, `count` of them; at the end it may be `cut` off."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "ETag": '"7"'})
    state["streams"] += 1
    state["headers"] = dict(request.headers)
    try:
        await response.prepare(request)
        for number in range(int(request.query.get("count", 10**9))):
            await response.write(f"data: {number}\n\n".encode())
            await asyncio.sleep(float(request.query.get("every", 0.02)))
        if "cut" in request.query:
            assert request.transport is not None
            request.transport.abort()
    finally:
        state["streams"] -= 1
    return response


@web.middleware
async def count(request: web.Request, handler: Any) -> web.StreamResponse:
    asked[request.path] += 1
    if state["failing"] and request.path not in {"/readyz", "/told"}:
        return web.Response(status=503)
    answer: web.StreamResponse = await handler(request)
    return answer


async def main(port: int) -> None:
    app = web.Application(middlewares=[count])
    app.router.add_get("/told", told)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/later", later)
    app.router.add_get("/large", large)
    app.router.add_get("/late", late)
    app.router.add_get("/events", events)
    for path, handler in (("/ok", ok), ("/drop", drop), ("/nonsense", nonsense)):
        app.router.add_route("*", path, handler)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: state.update(failing=not state["failing"]))
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=10)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    print(runner.addresses[0][1], flush=True)
    await stop.wait()
    state["draining"] = True
    await asyncio.sleep(4)
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))

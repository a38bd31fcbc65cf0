"""What is answered and logged when bytes arrive that are no HTTP request, before any route is known.

aiohttp would answer in plain text and log the bytes with a stack trace: a header among them may hold a credential.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from libs.common.problems import CONTENT_TYPE, Problem
from libs.common.security import SECURITY_HEADERS
from libs.common.timeouts import TIMEOUTS, GuardedConnection, Timeouts

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
# What answers a request that needs no handler, or says None. It never waits, and records what it answers.
Shortcut = Callable[[web.BaseRequest], web.StreamResponse | None]
SHORTCUT: web.AppKey[Shortcut] = web.AppKey("shortcut")
_HEADERS = {**SECURITY_HEADERS, "Cache-Control": "no-store", "Connection": "close"}
log = structlog.get_logger()


class Connection(GuardedConnection):
    """One client's connection."""

    __slots__ = ()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        error = kw.get("exc_info")
        if isinstance(error, HttpProcessingError | web.RequestPayloadError | Problem):
            log.info("request_unreadable", error=type(error).__name__)
        else:
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500 or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        log.info("request_unreadable", error=type(exc).__name__)
        problem = (
            Problem("request_timeout", "The head did not come in time.")
            if status == 408
            else Problem("malformed_request", "The request is not valid HTTP.")
        )
        body = msgspec.json.encode(problem.details())
        response = web.Response(body=body, status=problem.status, content_type=CONTENT_TYPE, headers=_HEADERS)
        response.force_close()
        return response


class Server(web.Server):
    """aiohttp's server, its connections ours."""

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application on such a server. Its SHORTCUT is asked before the router, its TIMEOUTS hold."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = Server  # aiohttp leaves no other place to choose the connection's class
        server._kwargs["timeouts"] = self.app.get(TIMEOUTS, Timeouts())  # noqa: SLF001 (as above)
        shortcut = self.app.get(SHORTCUT)
        if shortcut is not None:
            server.request_handler = _asking_first(shortcut, server.request_handler)
        return server


def end_connections(server: web.Server) -> None:
    """Let every connection, those to come as well, end with its next answer, which says so."""
    answer = server.request_handler

    async def answer_last(request: web.BaseRequest) -> web.StreamResponse:
        request._message = request._message._replace(should_close=True)  # noqa: SLF001 (no public way, here and below)
        return await answer(request)

    server.request_handler = answer_last
    for connection in server.connections:
        connection._request_handler = answer_last  # noqa: SLF001


def _asking_first(shortcut: Shortcut, handler: Handler) -> Handler:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        answer = shortcut(request)
        return answer if answer is not None else await handler(request)

    return handle

"""What is answered and logged when bytes arrive that are no HTTP request, before any route is known.

aiohttp would answer in plain text and log the bytes with a stack trace: a header among them may hold a credential.
"""

from typing import Any

import msgspec
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from libs.common.problems import CONTENT_TYPE, Problem

log = structlog.get_logger()


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = ()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        error = kw.get("exc_info")
        if isinstance(error, HttpProcessingError | web.RequestPayloadError):
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
        problem = Problem("malformed_request", "The request is not valid HTTP.")
        body = msgspec.json.encode(problem.details())
        response = web.Response(body=body, status=problem.status, content_type=CONTENT_TYPE)
        response.force_close()
        return response


class Server(web.Server):
    """aiohttp's server, its connections ours."""

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application on such a server."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = Server  # aiohttp leaves no other place to choose the connection's class
        return server

"""What is answered on a connection before any route is known: requests whose answer is at hand, and what is none.

An answer that is at hand is written the moment its request has been read: no task, no request object, no turn of the
loop. To bytes that are no HTTP request aiohttp would answer in plain text and log them with a stack trace: a header
among them may hold a credential.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMethod, HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD

from libs.common.problems import CONTENT_TYPE, Problem
from libs.common.security import SECURITY_HEADERS
from libs.common.timeouts import TIMEOUTS, GuardedConnection, Timeouts

# The whole answer to a request without a body from a peer, if it is at hand. It is not waited for, and records what it
# answers; requests after which the connection closes are not for it.
Shortcut = Callable[[RawRequestMessage, str], bytes | None]
SHORTCUT: web.AppKey[Shortcut] = web.AppKey("shortcut")
_HEADERS = {**SECURITY_HEADERS, "Cache-Control": "no-store", "Connection": "close"}
LINE_BYTES = 8190  # aiohttp's limit
log = structlog.get_logger()


class Connection(GuardedConnection):
    """One client's connection."""

    __slots__ = ("_peer", "shortcut")

    def __init__(self, manager: web.Server, *, shortcut: Shortcut | None, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self.shortcut = shortcut
        self._peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0] if isinstance(peer, list | tuple) else peer or "")

    def data_received(self, data: bytes) -> None:
        waiter = self._waiter
        if waiter is None or self.shortcut is None:
            super().data_received(data)
            return
        self._waiter = None  # the task that handles requests sleeps on, should there be nothing left for it
        try:
            super().data_received(data)
        finally:
            self._waiter = waiter
        if self._messages and not self._is_answered(self.shortcut) and not waiter.done():
            waiter.set_result(None)

    def _is_answered(self, shortcut: Shortcut) -> bool:
        """Whether the only request that came was one whose answer is at hand; it is written then."""
        message, payload = self._messages[0]
        transport, parser = self.transport, self._parser
        if (
            len(self._messages) > 1
            or payload is not EMPTY_PAYLOAD
            or not isinstance(message, RawRequestMessage)
            or message.should_close
            or message.upgrade
            or transport is None
            or parser is None
            or transport.get_write_buffer_size()  # a slow reader is waited for elsewhere
        ):
            return False
        try:
            answer = shortcut(message, self._peer)
        except Exception:
            log.exception("shortcut_failed")
            return False
        if answer is None:
            return False
        self._messages.popleft()
        parser.message_consumed()
        transport.write(answer)
        self._stay_alive()
        return True

    def _stay_alive(self) -> None:
        """Begin the idle time anew, as after any other answer."""
        until = self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(until, self._process_keepalive)

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
            else Problem("malformed_request", _reason(exc))
        )
        body = msgspec.json.encode(problem.details())
        response = web.Response(body=body, status=problem.status, content_type=CONTENT_TYPE, headers=_HEADERS)
        response.force_close()
        return response


def _reason(error: BaseException | None) -> str:
    """What is wrong with bytes that are no request. Nothing of theirs: a header among them may hold a credential."""
    if isinstance(error, LineTooLong):
        return f"The request line or a header is longer than {LINE_BYTES:,} bytes."
    if isinstance(error, BadHttpMethod):
        return "The request's method is not one of HTTP's."
    return "The request is not valid HTTP."


class Server(web.Server):
    """aiohttp's server, its connections ours."""

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application on such a server. Its SHORTCUT is asked before the router, its TIMEOUTS hold."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = Server  # aiohttp leaves no other place to choose the connection's class
        # As above.
        server._kwargs |= {"timeouts": self.app.get(TIMEOUTS, Timeouts()), "shortcut": self.app.get(SHORTCUT)}  # noqa: SLF001
        return server


def end_connections(server: web.Server) -> None:
    """Let every connection, those to come as well, end with its next answer, which says so."""
    answer = server.request_handler

    async def answer_last(request: web.BaseRequest) -> web.StreamResponse:
        request._message = request._message._replace(should_close=True)  # noqa: SLF001 (no public way, here and below)
        return await answer(request)

    server.request_handler = answer_last
    server._kwargs["shortcut"] = None  # noqa: SLF001
    for connection in server.connections:
        connection._request_handler = answer_last  # noqa: SLF001
        if isinstance(connection, Connection):
            connection.shortcut = None

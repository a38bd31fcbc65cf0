"""How long a connection waits for a client that is slow, and what it refuses before a handler sees it."""

import asyncio
import socket
from typing import Any

import msgspec
from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo

from libs.common.framing import fault, is_host, loses_what_follows
from libs.common.problems import Problem

HEAD_BYTES = 65_536


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from a head's first byte to its last, without a byte of the body, and between requests.

    `write` is how long a client may leave bytes of its answer untaken; 0 is for ever.
    """

    head: float = 10.0
    body: float = 20.0
    idle: float = 75.0
    write: float = 0.0


TIMEOUTS: web.AppKey[Timeouts] = web.AppKey("timeouts", Timeouts)


class GuardedConnection(web.RequestHandler):
    """One client's connection. Timers run only while a client keeps us waiting."""

    __slots__ = ("_body", "_body_heard_at", "_body_timer", "_head_bytes", "_head_timer", "_host", "_last", "_timeouts")

    def __init__(self, manager: web.Server, *, timeouts: Timeouts, **kwargs: Any) -> None:
        super().__init__(manager, keepalive_timeout=timeouts.idle, **kwargs)
        self._timeouts = timeouts
        self._host = ""
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None
        self._body_heard_at = 0.0
        self._body_timer: asyncio.TimerHandle | None = None
        self._last = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        seconds = self._timeouts.write
        connected = transport.get_extra_info("socket")
        if seconds and connected is not None and connected.family != socket.AF_UNIX:
            # The kernel counts, also while the connection is being closed: tcp(7).
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_is_here()
        self._body_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._body is not None:
            self._part_of_a_body_came(self._body, data)
            return
        count = self._request_count
        super().data_received(data)
        if self._request_count != count:
            self._requests_came(self._request_count - count)
        elif not self._request_in_progress and not self._upgraded and data.strip(b"\r\n"):
            self._part_of_a_head_came(len(data))

    def _part_of_a_body_came(self, body: StreamReader, data: bytes) -> None:
        """The next requests may come with its end."""
        count, received = self._request_count, body.total_raw_bytes
        super().data_received(data)
        if body.is_eof():
            self._body_is_here()
        elif body.total_raw_bytes > received:
            self._body_heard_at = self._loop.time()
        if self._request_count != count:
            self._requests_came(self._request_count - count)

    def _requests_came(self, count: int) -> None:
        if self._head_timer is not None:
            self._head_is_here()
        messages = self._messages
        for position in range(len(messages) - count, len(messages)):
            message, payload = messages[position]
            if isinstance(message, _ErrInfo):
                # aiohttp lets a handler wait for ever for the rest of a body that has gone wrong.
                self._fail_body(Problem("malformed_request", "The body is not valid HTTP."))
                return
            wrong = fault(message)
            if wrong is None and message.headers.get(hdrs.HOST, "") != self._host:
                wrong = self._fault_of_host(message)
            if wrong is not None:
                while len(messages) > position:
                    messages.pop()
                self._refuse(400, BadHttpMessage(wrong))
                return
            if message.upgrade and loses_what_follows(message):
                messages[position] = (message._replace(should_close=True), payload)
                self._last = True
        if payload is not EMPTY_PAYLOAD and not payload.is_eof():
            self._body = payload
            self._body_heard_at = self._loop.time()
            self._body_timer = self._loop.call_later(self._timeouts.body, self._body_is_slow)
        elif self._last:
            self._close = True

    def _fault_of_host(self, message: RawRequestMessage) -> str | None:
        host = message.headers.get(hdrs.HOST, "")
        if not is_host(host):
            return "The Host header names no host."
        self._host = host
        return None

    def _refuse(self, status: int, error: Exception) -> None:
        """Answer with an error instead of what came or will come, and close."""
        self._close = True
        self._messages.append((_ErrInfo(status=status, exc=error, message=""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _part_of_a_head_came(self, size: int) -> None:
        self._head_bytes += size
        if self._head_timer is None:
            self._head_timer = self._loop.call_later(self._timeouts.head, self._head_is_slow)
        if self._head_bytes > HEAD_BYTES:
            self._head_is_here()
            self._refuse(400, BadHttpMessage("The head is too large."))

    def _head_is_here(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_slow(self) -> None:
        self._head_timer = None
        self._refuse(408, TimeoutError("head"))

    def _body_is_here(self) -> None:
        self._body = None
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        if self._last:
            self._close = True

    def _body_is_slow(self) -> None:
        self._body_timer = None
        if self._body is None or self._body.is_eof():
            self._body = None
            return
        if self._reading_paused:
            self._body_heard_at = self._loop.time()  # it is we who keep the client waiting
        left = self._body_heard_at + self._timeouts.body - self._loop.time()
        if left > 0:
            self._body_timer = self._loop.call_later(left, self._body_is_slow)
            return
        self._fail_body(Problem("request_timeout", "The body did not come in time."))

    def _fail_body(self, problem: Problem) -> None:
        """Whoever reads the body is told; the connection ends with the answer."""
        if self._body is not None:
            self._body.set_exception(problem)
            self._body_is_here()
            request = self._current_request
            if request is not None:
                request._message = request._message._replace(should_close=True)  # noqa: SLF001 (the answer says so)

    def _process_keepalive(self) -> None:
        if self._head_timer is not None:
            self._keepalive_handle = None  # a request has begun; its own time counts
        else:
            super()._process_keepalive()

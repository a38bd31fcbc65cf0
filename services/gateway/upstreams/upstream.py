"""Calls from the gateway to the other services."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence

import aiohttp
import msgspec
from prometheus_client import Counter
from yarl import URL

from libs.common import deadlines, tracing
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Principal, Signer
from libs.common.problems import Problem, unavailable
from services.gateway.upstreams.breakers import RetryBudget
from services.gateway.upstreams.instances import Bounds, Instances, LookUp, Outcome, Turn

IDEMPOTENCY_HEADER = "Idempotency-Key"
_CONNECT_SECONDS = 2.0
_TRIES = 3
_LATE_SECONDS = 0.05  # so near the deadline, a 504 says that it has passed
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_RETRIES = Counter("upstream_retries_total", "Requests that were sent again.", ["upstream", "outcome"])


class Answer(msgspec.Struct, frozen=True):
    """What an upstream answered, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    duration_ms: float


class UpstreamProblem(Exception):  # noqa: N818 (an answer, carried past the cache)
    """An answer other than 200 where only a 200 could be used; it is to be handed on as it is."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"upstream answered {answer.status}")
        self.answer = answer


class _Failure(Exception):  # noqa: N818 (of one try)
    """A try that failed, and the answer, if there was one."""

    def __init__(self, outcome: Outcome, answered: tuple[aiohttp.ClientResponse, bytes] | None = None) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.answered = answered


class _Request(msgspec.Struct, frozen=True):
    """What is sent, until when (`time.monotonic`) it may take; with `idle_seconds` the answer is not read."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None
    deadline: float
    idle_seconds: float | None = None

    @property
    def repeatable(self) -> bool:
        return self.method in _SAFE_METHODS or IDEMPOTENCY_HEADER in self.headers


class Upstream:
    """One service as the gateway calls it."""

    def __init__(
        self,
        name: str,
        addresses: Sequence[str],
        http: aiohttp.ClientSession,
        signer: Signer,
        *,
        seconds: float = 10.0,
        bounds: Bounds | None = None,
        look_up: LookUp | None = None,
    ) -> None:
        """`addresses` and `look_up` as for `Instances`; `http` from `client_session`; `seconds` a call may take."""
        self.name = name
        self._http = http
        self._signer = signer
        self._seconds = seconds
        self._bounds = bounds or Bounds()
        self._instances = Instances(name, addresses, self._bounds, look_up=look_up)
        self._budget = RetryBudget()
        self._streams = 0
        self._sent_again = _RETRIES.labels(name, "sent")
        self._over_budget = _RETRIES.labels(name, "over_budget")

    def watched(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Look after the instances while the block lasts."""
        return self._instances.watched(self._http)

    async def call(
        self,
        method: str,
        path: str,
        *,
        principal: Principal | None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        seconds: float | None = None,
    ) -> Answer:
        """Send a request for `principal` (None: for the gateway itself) and read the whole answer.

        It ends within `seconds`, the upstream's own by default, and the service is told how long that still is. What
        could not be sent is sent to another instance; so is a GET, a HEAD or a request with an `Idempotency-Key`
        whose instance failed, as far as the budget of retries allows.

        Raises:
            Problem: `service_unavailable` (503) when the service cannot be reached, drops the connection or has too
                much to do, `deadline_exceeded` (504) when it does not answer in time, `bad_gateway` (502) for an
                answer that is no HTTP or too large.
        """
        began = time.monotonic()
        sent = self._headers(principal, headers)
        request = _Request(method, path, sent, body, began + (seconds or self._seconds))
        response, content = await self._send(request)
        return Answer(response.status, response.headers, content, (time.monotonic() - began) * 1000)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        principal: Principal | None,
        headers: Mapping[str, str] | None = None,
        idle_seconds: float,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and hand over the answer with its body unread, however long that is or lasts.

        It ends when nothing has come for `idle_seconds`. The connection is closed with the block.

        Raises:
            Problem: as `call`, and 503 when there are too many streams.
        """
        if self._streams >= self._bounds.streams:
            raise unavailable(f"The {self.name} service")
        self._streams += 1
        try:
            sent = self._headers(principal, headers)
            deadline = time.monotonic() + self._seconds
            response, _ = await self._send(_Request(method, path, sent, None, deadline, idle_seconds))
            async with response:
                yield response
        finally:
            self._streams -= 1

    def _headers(self, principal: Principal | None, headers: Mapping[str, str] | None) -> dict[str, str]:
        token = (
            self._signer.principal_token(principal, self.name)
            if principal is not None
            else self._signer.service_token(self.name)
        )
        sent = {**(headers or {}), "Accept-Encoding": "identity", PRINCIPAL_HEADER: token}
        tracing.inject(sent)
        return sent

    async def _send(self, request: _Request) -> tuple[aiohttp.ClientResponse, bytes]:
        """An answer and its body, from one instance or another."""
        now = time.monotonic()
        self._budget.asked(now)
        turn = self._instances.take() or await self._instances.wait(request.deadline - now)
        tries = 1
        while True:
            try:
                return await self._try(turn, request)
            except _Failure as failure:
                other = None
                if tries < _TRIES and (request.repeatable or failure.outcome in _NEVER_SENT):
                    other = self._another(turn, failure.outcome, request.deadline)
                if other is None:
                    if failure.answered is not None:
                        return failure.answered
                    raise _problem(self.name, failure.outcome) from failure
                if failure.answered is not None:
                    failure.answered[0].close()
                turn = other
                tries += 1

    def _another(self, failed: Turn, outcome: Outcome, deadline: float) -> Turn | None:
        """A turn for one more try; of the same instance if it is the only one and has but closed the connection."""
        now = time.monotonic()
        if outcome not in _RETRIED or now >= deadline:
            return None
        turn = self._instances.take(besides=failed.instance)
        if turn is None and outcome is Outcome.DROPPED:
            turn = self._instances.take()
        if turn is None:
            return None
        if not self._budget.allows(now):
            self._instances.give_back(turn, Outcome.ABANDONED)
            self._over_budget.inc()
            return None
        self._sent_again.inc()
        return turn

    async def _try(self, turn: Turn, request: _Request) -> tuple[aiohttp.ClientResponse, bytes]:
        if request.idle_seconds is None:
            left = max(request.deadline - time.monotonic(), 0.001)  # 0 would be no limit
            request.headers[deadlines.HEADER] = str(int(left * 1000))
            timeout = aiohttp.ClientTimeout(total=left, connect=_CONNECT_SECONDS)
        else:
            timeout = aiohttp.ClientTimeout(connect=_CONNECT_SECONDS, sock_read=request.idle_seconds)
        outcome = Outcome.ABANDONED
        try:
            response = await self._http.request(
                request.method,
                URL(turn.instance.url + request.path, encoded=True),
                headers=request.headers,
                data=request.body,
                timeout=timeout,
                allow_redirects=False,
            )
            content = b""
            if request.idle_seconds is None:
                content = await _read(response, self._bounds.answer_bytes)
            status = response.status
            if status == 502 or (status == 503 and "Retry-After" not in response.headers):
                outcome = Outcome.FAILED
                raise _Failure(outcome, (response, content))
            late = status == 504 and time.monotonic() > request.deadline - _LATE_SECONDS
            outcome = Outcome.TIMED_OUT if late else Outcome.ANSWERED
        except (aiohttp.ClientError, TimeoutError, _TooLargeError) as error:
            outcome = _outcome(error)
            raise _Failure(outcome) from error
        else:
            return response, content
        finally:
            self._instances.give_back(turn, outcome)


class _TooLargeError(Exception):
    pass


_NEVER_SENT = frozenset({Outcome.REFUSED, Outcome.UNREACHABLE})
_RETRIED = _NEVER_SENT | {Outcome.DROPPED, Outcome.FAILED}


def _outcome(error: Exception) -> Outcome:
    if isinstance(error, aiohttp.ClientConnectorError):
        return Outcome.REFUSED
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Outcome.UNREACHABLE
    if isinstance(error, TimeoutError):
        return Outcome.TIMED_OUT
    if isinstance(error, _TooLargeError):
        return Outcome.TOO_LARGE
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.InvalidURL):
        return Outcome.UNREADABLE
    return Outcome.DROPPED


def _problem(name: str, outcome: Outcome) -> Problem:
    if outcome is Outcome.TIMED_OUT:
        return Problem("deadline_exceeded", f"The {name} service did not answer in time.")
    if outcome is Outcome.UNREADABLE or outcome is Outcome.TOO_LARGE:
        return Problem("bad_gateway", f"The {name} service gave an answer that cannot be used.")
    return unavailable(f"The {name} service")


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body.

    Raises:
        _TooLargeError: for one of more than `limit` bytes, of which no more than those were read.
    """
    length = response.content_length
    if length is not None and length <= limit:
        return await response.read()
    content = bytearray()
    if length is None:
        try:
            async for part in response.content.iter_any():
                content += part
                if len(content) > limit:
                    break
            else:
                response.release()
                return bytes(content)
        except BaseException:
            response.close()
            raise
    response.close()
    raise _TooLargeError


def client_session() -> aiohttp.ClientSession:
    """The connections to all upstreams; how many there are and how long a call takes, an `Upstream` bounds.

    Answers are taken as they come: nothing is unpacked, for a small answer may be a large one packed.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
    )
    # aiohttp would send a GET or DELETE a second time whose connection was closed meanwhile, past the budget; there is
    # no public way to tell it not to.
    session._retry_connection = False  # noqa: SLF001
    return session

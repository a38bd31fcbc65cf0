"""A client of the public HTTP API; problems become exceptions with a sentence and an exit code."""

import asyncio
import contextlib
import datetime as dt
import email.utils
import errno
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import aiohttp
import msgspec

from cli.credentials import Target
from cli.errors import CommandError, NotAuthorisedError, UnreachableError, UsageError, WrongServerError
from libs.common.cache.administration import CacheCleared, CacheFigures, ClearCache
from libs.common.models import BulkReport, BulkResult, SearchResults
from libs.common.people import RealtimeToken, WhoAmI
from libs.common.problems import ProblemDetails

T = TypeVar("T")

TIMEOUT_SECONDS = 60
SHORTEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 30.0
SERVER_ERROR = 500
TOO_MANY_REQUESTS = 429
DEGRADED = 503


class HealthCheck(msgspec.Struct, frozen=True):
    name: str
    status: str
    detail: str | None = None
    duration_ms: float | None = None


class Health(msgspec.Struct, frozen=True):
    status: str
    checks: list[HealthCheck]


class Api:
    """The routes that the commands use. Every method may raise the errors of `cli.errors`."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def session(self) -> WhoAmI:
        return self._decode(await self._request("GET", "/api/session"), WhoAmI)

    async def realtime_token(self) -> RealtimeToken:
        return self._decode(await self._request("POST", "/api/realtime/token", body=b"{}"), RealtimeToken)

    async def search(self, query: str, limit: int) -> tuple[SearchResults, bytes]:
        """The results, decoded and as they came."""
        answer = await self._request("GET", "/api/search", params={"q": query, "limit": str(limit)})
        return self._decode(answer, SearchResults), answer

    async def health(self) -> tuple[Health, bytes]:
        """The checks, decoded and as they came; a degraded platform is an answer, not an error."""
        answer = await self._request("GET", "/api/health", expected=(200, DEGRADED))
        return self._decode(answer, Health), answer

    async def cache(self) -> tuple[CacheFigures, bytes]:
        """The cache's figures, decoded and as they came."""
        answer = await self._request("GET", "/api/admin/cache")
        return self._decode(answer, CacheFigures), answer

    async def clear_cache(self, wanted: ClearCache) -> tuple[CacheCleared, bytes]:
        """Clear the cache: what was done, decoded and as it came."""
        answer = await self._request("POST", "/api/admin/cache/clear", body=msgspec.json.encode(wanted))
        return self._decode(answer, CacheCleared), answer

    async def bulk(self, tickets: Sequence[bytes]) -> list[BulkResult]:
        """Create encoded `NewTicket`s; result i is the fate of ticket i."""
        answer = await self._request("POST", "/api/tickets/bulk", body=bulk_body(tickets))
        results = sorted(self._decode(answer, BulkReport).results, key=lambda result: result.index)
        if [result.index for result in results] != list(range(len(tickets))):
            raise WrongServerError(f"{self._url} answered for {len(results)} of {len(tickets)} tickets.")
        return results

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        params: Mapping[str, str] | None = None,
        expected: Sequence[int] = (200, 201),
    ) -> bytes:
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with self._session.request(
                method, self._url + path, data=body, params=params, headers=headers, allow_redirects=False
            ) as response:
                answer = await response.read()
        except aiohttp.InvalidURL as error:
            raise UsageError(f"--url {self._url} is not an address.") from error
        except TimeoutError as error:
            raise UnreachableError(f"{self._url} did not answer within {TIMEOUT_SECONDS} s.") from error
        except (aiohttp.ClientError, OSError) as error:
            # `localhost` is several addresses; that each refused is one error without a number.
            refused = type(error) is aiohttp.ClientConnectorError and error.errno in {errno.ECONNREFUSED, None}
            why = "; is it running? (make run, or --url)" if refused else f": {error}."
            raise UnreachableError(f"{self._url} cannot be reached{why}") from error
        if response.status not in expected:
            raise _error(self._url, response.status, response.headers, answer)
        return answer

    def _decode(self, answer: bytes, form: type[T]) -> T:
        try:
            return msgspec.json.decode(answer, type=form)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WrongServerError(f"{self._url} does not answer as Relaydesk does ({error}).") from error


@contextlib.asynccontextmanager
async def connect(url: str, api_key: str | None) -> AsyncIterator[Api]:
    """Open a client; health is the one route that needs no key."""
    headers = {"Accept": "application/json", "User-Agent": "relaydesk-cli"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS, connect=10)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        yield Api(session, url)


async def connect_check(api: Api, target: Target, organization: str | None) -> WhoAmI:
    """Ask whom the key belongs to, before anything is written.

    Raises:
        NotAuthorisedError: when it is another organization than `organization`.
    """
    session = await api.session()
    if organization is not None and session.organization.slug != organization:
        raise NotAuthorisedError(
            f"The API key (from {target.source}) belongs to the organization "
            f"{session.organization.slug!r}, not to {organization!r}. Nothing was written."
        )
    return session


def bulk_body(tickets: Sequence[bytes]) -> bytes:
    return b'{"tickets":[' + b",".join(tickets) + b"]}"


def retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header (RFC 9110, 10.2.3: a number or a date)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return max(0.0, (moment - dt.datetime.now(dt.UTC)).total_seconds())


def _error(url: str, status: int, headers: Mapping[str, str], answer: bytes) -> CommandError:
    try:
        problem = msgspec.json.decode(answer, type=ProblemDetails)
        sentence = f"{problem.detail or problem.title} ({status} {problem.code})"
        if problem.trace_id:
            sentence += f" [trace {problem.trace_id}]"
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem, sentence = None, f"status {status}"
    if status == TOO_MANY_REQUESTS or status >= SERVER_ERROR:
        return UnreachableError(f"{url} cannot do this now: {sentence}", retry_after(headers.get("Retry-After")))
    if problem is None:
        return WrongServerError(f"{url} does not answer as Relaydesk does ({sentence}).")
    if status in {401, 403}:
        return NotAuthorisedError(f"{url} refuses the API key: {sentence}")
    return CommandError(f"{url} refuses the request: {sentence}")


class Patience:
    """Waits for a platform that is away, for at most `limit` seconds on end, and says so once per outage.

    Only for calls that may be repeated without harm.
    """

    def __init__(self, limit: float, notice: Callable[[str], None]) -> None:
        self._limit = limit
        self._notice = notice
        self._away_since: float | None = None

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        delay = 1.0
        while True:
            try:
                result = await call()
            except UnreachableError as error:
                asked = delay if error.retry_after is None else error.retry_after
                wait = min(max(asked, SHORTEST_WAIT_SECONDS), LONGEST_WAIT_SECONDS)
                now = time.monotonic()
                if self._away_since is None:
                    self._away_since = now
                    self._notice(f"{error} Trying again for up to {self._limit:.0f} s.")
                if now + wait - self._away_since > self._limit:
                    raise
                await asyncio.sleep(wait)
                delay = min(delay * 2, LONGEST_WAIT_SECONDS)
            else:
                if self._away_since is not None:
                    away = time.monotonic() - self._away_since
                    self._away_since = None
                    self._notice(f"The platform answers again after {away:.0f} s.")
                return result

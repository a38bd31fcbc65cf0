"""Calls from the gateway to the other services."""

import time
from collections.abc import Mapping

import aiohttp
import msgspec

from libs.common import tracing
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Principal, Signer
from libs.common.problems import Problem, unavailable

_CONNECTIONS = 256
_CONNECT_SECONDS = 2.0


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


class Upstream:
    """One service as the gateway calls it."""

    def __init__(self, name: str, url: str, session: aiohttp.ClientSession, signer: Signer) -> None:
        self.name = name
        self._url = url
        self._session = session
        self._signer = signer

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

        `seconds` is the deadline of this call, the client session's by default.

        Raises:
            Problem: `service_unavailable` (503) when the service cannot be reached or drops the connection,
                `deadline_exceeded` (504) when it does not answer in time.
        """
        token = (
            self._signer.principal_token(principal, self.name)
            if principal is not None
            else self._signer.service_token(self.name)
        )
        sent = {**(headers or {}), PRINCIPAL_HEADER: token}
        tracing.inject(sent)
        timeout = aiohttp.ClientTimeout(total=seconds, connect=_CONNECT_SECONDS) if seconds else None
        started = time.perf_counter()
        try:
            async with self._session.request(
                method,
                self._url + path,
                headers=sent,
                data=body,
                timeout=timeout or self._session.timeout,
                allow_redirects=False,
            ) as response:
                content = await response.read()
                duration = (time.perf_counter() - started) * 1000
                return Answer(response.status, response.headers, content, duration)
        except aiohttp.ConnectionTimeoutError as error:
            raise unavailable(f"The {self.name} service") from error
        except TimeoutError as error:
            raise Problem("deadline_exceeded", f"The {self.name} service did not answer in time.") from error
        except aiohttp.ClientError as error:
            raise unavailable(f"The {self.name} service") from error


def client_session(seconds: float) -> aiohttp.ClientSession:
    """The connections to all upstreams; a call ends after `seconds`."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=_CONNECTIONS, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=seconds, connect=_CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
    )

"""Cross-origin requests (the Fetch standard's CORS protocol): which sites' scripts may read answers."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from libs.common.consistency import HEADER
from services.gateway.callers.authentication import CSRF_HEADER

_MAX_AGE_SECONDS = 7200  # Chromium keeps a preflight no longer
_METHODS: Final = ("GET", "POST", "PATCH", "DELETE")
_SENT: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    HEADER,
    CSRF_HEADER,
    "traceparent",
    "tracestate",
)
_EXPOSED: Final = (
    "ETag",
    "Link",
    "Location",
    "Retry-After",
    "RateLimit",
    "RateLimit-Policy",
    "Idempotency-Replayed",
    "Relaydesk-Cache",
    HEADER,
)


class Cors:
    """Answers preflights, and marks the answers that a page of an allowed origin may read.

    An origin is allowed exactly or not at all, for credentials go with it; a foreign one gets no header, so its
    browser keeps the answer from it.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._preflights = {
            origin: {
                **_allowed(origin),
                "Access-Control-Allow-Methods": ", ".join(_METHODS),
                "Access-Control-Allow-Headers": ", ".join(_SENT),
                "Access-Control-Max-Age": str(_MAX_AGE_SECONDS),
            }
            for origin in origins
        }
        self._answers = {
            origin: {**_allowed(origin), "Access-Control-Expose-Headers": ", ".join(_EXPOSED)} for origin in origins
        }

    async def preflight(self, request: web.Request) -> web.Response:
        """`OPTIONS` on any route: no service is asked."""
        return web.Response(status=204, headers=self._preflights.get(request.headers.get("Origin", "")))

    async def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """For every answer on its way out."""
        headers = response.headers
        vary = headers.get("Vary")
        if vary is None:
            headers["Vary"] = "Origin"
        elif "Origin" not in vary:
            headers["Vary"] = f"{vary}, Origin"
        if request.method != "OPTIONS":
            headers.update(self._answers.get(request.headers.get("Origin", ""), {}))


def _allowed(origin: str) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Credentials": "true"}

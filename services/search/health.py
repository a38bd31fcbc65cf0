"""HTTP of how search is, for the gateway's `/api/health`."""

from collections.abc import Callable, Mapping

from aiohttp import web

from libs.common.identity import HEADER, Verifier
from libs.common.kafka import EventConsumer
from libs.common.problems import Problem
from libs.common.service import json_response
from services.search.queries import Queries

LAG_SECONDS = 30.0


class HealthRoutes:
    """200 with a `detail`, or 503."""

    def __init__(
        self, queries: Callable[[], Queries], consumers: Mapping[str, EventConsumer], verifier: Verifier
    ) -> None:
        self._queries = queries
        self._consumers = consumers
        self._verifier = verifier

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/internal/health", self.health, allow_head=False)

    async def health(self, request: web.Request) -> web.Response:
        """Whether the database answers, and the consumers have applied what is older than 30 s."""
        self._verifier.service(request.headers.get(HEADER))
        lags = {group: consumer.lag() for group, consumer in self._consumers.items()}
        told = ", ".join(_told(group, lag) for group, lag in lags.items())
        if any(lag is None or lag > LAG_SECONDS for lag in lags.values()):
            raise Problem("service_unavailable", told)
        await self._queries().check()
        return json_response({"status": "ok", "detail": told})


def _told(group: str, lag: float | None) -> str:
    return f"{group} does not consume" if lag is None else f"{group} is {lag:.1f} s behind"

"""HTTP of what only this service can know of, for the gateway's `/api/health`."""

from collections.abc import Callable

from aiohttp import web

from libs.common import kafka
from libs.common.identity import HEADER, Verifier
from libs.common.problems import Problem
from libs.common.service import json_response
from services.tickets.database import Database

_KAFKA_SECONDS = 1.5  # less than who asks waits


class HealthRoutes:
    """200 with a `detail`, or 503."""

    def __init__(self, database: Callable[[], Database], verifier: Verifier, kafka_bootstrap: str) -> None:
        self._database = database
        self._verifier = verifier
        self._kafka_bootstrap = kafka_bootstrap

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/internal/health", self.database, allow_head=False)
        router.add_get("/internal/health/kafka", self.kafka, allow_head=False)
        router.add_get("/internal/health/replicas", self.replicas, allow_head=False)

    async def database(self, request: web.Request) -> web.Response:
        """Whether the primary answers."""
        self._verifier.service(request.headers.get(HEADER))
        await self._database().check()
        return json_response({"status": "ok", "detail": "answers"})

    async def kafka(self, request: web.Request) -> web.Response:
        self._verifier.service(request.headers.get(HEADER))
        try:
            await kafka.check(self._kafka_bootstrap, seconds=_KAFKA_SECONDS)
        except OSError as error:
            raise _failed("does not answer") from error
        return json_response({"status": "ok", "detail": "answers"})

    async def replicas(self, request: web.Request) -> web.Response:
        """Whether every read replica can be read from."""
        self._verifier.service(request.headers.get(HEADER))
        usable = [replica.usable for replica in self._database().servers.replicas]
        told = f"{sum(usable)} of {len(usable)} usable" if usable else "none configured"
        if not all(usable):
            raise _failed(told)
        return json_response({"status": "ok", "detail": told})


def _failed(detail: str) -> Problem:
    return Problem("service_unavailable", detail)

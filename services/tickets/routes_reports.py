"""HTTP of reports: parse, call, render."""

import datetime as dt
from collections.abc import Callable

from aiohttp import web

from libs.common.identity import Verifier
from libs.common.reports import By
from libs.common.service import json_response
from services.tickets import reports
from services.tickets.database import Database
from services.tickets.parameters import day_of, name_of, principal_of, read_headers, requirement_of


class ReportRoutes:
    def __init__(self, database: Callable[[], Database], verifier: Verifier) -> None:
        self._database = database
        self._verifier = verifier

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/api/reports/tickets", self.tickets, allow_head=False)
        router.add_get("/api/reports/times", self.times, allow_head=False)
        router.add_get("/api/reports/backlog", self.backlog, allow_head=False)

    async def tickets(self, request: web.Request) -> web.Response:
        organization_id = principal_of(request, self._verifier).organization_id
        by = name_of(request, "by", By, By.STATUS)
        found = await reports.tickets_report(
            self._database(), organization_id, requirement_of(request), by, range_of(request)
        )
        return json_response(found.value, headers=read_headers(found))

    async def times(self, request: web.Request) -> web.Response:
        organization_id = principal_of(request, self._verifier).organization_id
        found = await reports.times_report(
            self._database(), organization_id, requirement_of(request), range_of(request)
        )
        return json_response(found.value, headers=read_headers(found))

    async def backlog(self, request: web.Request) -> web.Response:
        organization_id = principal_of(request, self._verifier).organization_id
        found = await reports.backlog_report(self._database(), organization_id, requirement_of(request))
        return json_response(found.value, headers=read_headers(found))


def range_of(request: web.Request) -> reports.Range:
    return reports.range_of(day_of(request, "from"), day_of(request, "to"), dt.datetime.now(dt.UTC).date())

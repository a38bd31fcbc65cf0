"""`/api/reports` and `/api/audit`: asked of the tickets service each time.

Not cached: nothing tells of a new entry of the audit log; and a report's numbers change with every write, so tags
would void an entry before it is asked for again, and a lifetime would show counts that a reader's own write is missing
from. Reports come from a replica of their own.
"""

from urllib.parse import urlencode

from aiohttp import web

from libs.common.consistency import HEADER
from libs.common.service import LOG_FIELDS
from services.gateway.callers.authentication import Authenticator
from services.gateway.upstreams.forwarding import relayed, upstream_path
from services.gateway.upstreams.upstream import Upstream

_SECONDS = 35.0  # the tickets service ends a report after 30 s


class ReportRoutes:
    def __init__(self, authenticator: Authenticator, tickets: Upstream) -> None:
        self._authenticator = authenticator
        self._tickets = tickets

    async def report(self, request: web.Request) -> web.Response:
        principal = (await self._authenticator.authenticate(request)).principal
        path = upstream_path(request)
        if request.query:
            path += "?" + urlencode(list(request.query.items()))
        headers = {HEADER: request.headers[HEADER]} if HEADER in request.headers else {}
        answer = await self._tickets.call("GET", path, principal=principal, headers=headers, seconds=_SECONDS)
        request[LOG_FIELDS]["upstream_ms"] = round(answer.duration_ms, 2)
        return relayed(answer)

"""Requests that are handed on as they are, and answers that come back so."""

from aiohttp import web

from libs.common.consistency import HEADER
from libs.common.identity import Principal
from libs.common.service import LOG_FIELDS, read_body, read_json_body
from services.gateway.upstream import Answer, Upstream

_SENT_HEADERS = ("Content-Type", "If-Match")
_RELAYED_HEADERS = ("Content-Type", "ETag", "Location", "Link", "Retry-After", HEADER)


async def forward(request: web.Request, principal: Principal, upstream: Upstream) -> Answer:
    """Send the request on for `principal`; bodies must be JSON and at most 1 MiB.

    Raises:
        Problem: 413 and 415 for the body, 503 and 504 for the upstream.
    """
    has_body = request.method in {"POST", "PATCH", "PUT"}
    body = await (read_json_body(request) if has_body else read_body(request))
    headers = {name: request.headers[name] for name in _SENT_HEADERS if name in request.headers}
    answer = await upstream.call(
        request.method, request.raw_path, principal=principal, headers=headers, body=body or None
    )
    request[LOG_FIELDS]["upstream_ms"] = round(answer.duration_ms, 2)
    return answer


def relayed(answer: Answer) -> web.Response:
    """The upstream's answer, with the headers that are meant for clients."""
    headers = {name: answer.headers[name] for name in _RELAYED_HEADERS if name in answer.headers}
    headers["Cache-Control"] = "private, no-store"
    return web.Response(status=answer.status, headers=headers, body=answer.body)

"""Requests that are handed on, and answers that come back as they are."""

import uuid

from aiohttp import web

from libs.common.consistency import HEADER
from libs.common.identity import Principal
from libs.common.problems import Problem
from libs.common.service import LOG_FIELDS, read_json_body
from services.gateway.upstreams.upstream import Answer, Upstream

_SENT_HEADERS = ("If-Match", "Idempotency-Key")
_RELAYED_HEADERS = ("Content-Type", "ETag", "Location", "Link", "Retry-After", "Idempotency-Replayed", HEADER)
_NOT_FOUND = {"ticket_id": ("ticket_not_found", "ticket"), "key_id": ("key_not_found", "API key")}


def path_id(request: web.Request, name: str) -> str:
    """The UUID in the path, in canonical form: the one that cache tags and revocations are known by.

    Raises:
        Problem: `ticket_not_found` or `key_not_found` (404) for text that is no UUID.
    """
    text = request.match_info[name]
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        code, noun = _NOT_FOUND[name]
        raise Problem(code, f"There is no {noun} {text[:64]!r}.") from error


def upstream_path(request: web.Request) -> str:
    """The path to ask a service for: the route's own, with canonical ids.

    Never what the client wrote: decoded, `..%2F` would climb out of the route and into the services' internal ones.

    Raises:
        Problem: as `path_id`.
    """
    resource = request.match_info.route.resource
    if resource is None:
        raise Problem("route_not_found")
    return resource.canonical.format_map({name: path_id(request, name) for name in request.match_info})


async def forward(request: web.Request, principal: Principal, upstream: Upstream) -> Answer:
    """Send the request on for `principal`, without its query; bodies must be JSON and at most 1 MiB.

    Raises:
        Problem: 404 for the path, 413 and 415 for the body, 503 and 504 for the upstream.
    """
    path = upstream_path(request)
    headers = {name: request.headers[name] for name in _SENT_HEADERS if name in request.headers}
    body = None
    if request.method in {"POST", "PATCH"}:
        body = await read_json_body(request)
        headers["Content-Type"] = "application/json"
    method = "GET" if request.method == "HEAD" else request.method
    answer = await upstream.call(method, path, principal=principal, headers=headers, body=body)
    request[LOG_FIELDS]["upstream_ms"] = round(answer.duration_ms, 2)
    return answer


def relayed(answer: Answer) -> web.Response:
    """The upstream's answer, with the headers that are meant for clients."""
    headers = {name: answer.headers[name] for name in _RELAYED_HEADERS if name in answer.headers}
    headers["Cache-Control"] = "private, no-store"
    return web.Response(status=answer.status, headers=headers, body=answer.body)

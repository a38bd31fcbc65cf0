"""HTTP of idempotent creations: the key that a request names, and the reply as a response."""

from aiohttp import web

from libs.common.consistency import HEADER as CONSISTENCY_HEADER
from libs.common.consistency import Position
from services.tickets.idempotency import HEADER, REPLAYED_HEADER, Attempt, Reply


def attempt_of(request: web.Request, body: bytes) -> Attempt | None:
    """The Idempotency-Key of a request with its fingerprint.

    Raises:
        Problem: `invalid_parameter` (400).
    """
    return Attempt.of(request.headers.get(HEADER), request.method, request.path, body)


def reply_response(reply: Reply, position: Position | None = None) -> web.Response:
    headers = dict(reply.headers)
    if position is not None:
        headers[CONSISTENCY_HEADER] = position.token()
    if reply.replayed:
        headers[REPLAYED_HEADER] = "true"
    return web.Response(status=reply.status, headers=headers, body=reply.body, content_type="application/json")

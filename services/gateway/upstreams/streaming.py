"""Answers that are passed through as they come: server-sent events, files."""

import asyncio
from typing import Final

import aiohttp
from aiohttp import web

from libs.common.identity import Principal
from libs.common.service import LOG_FIELDS
from services.gateway.upstreams.upstream import Upstream

IDLE_SECONDS: Final = 60.0
_SENT_HEADERS = ("Accept", "If-None-Match", "If-Modified-Since", "If-Range", "Last-Event-ID", "Range")
_RELAYED_HEADERS = (
    *("Accept-Ranges", "Content-Disposition", "Content-Encoding", "Content-Length", "Content-Range", "Content-Type"),
    *("ETag", "Last-Modified", "Retry-After", "X-Accel-Buffering"),
)


async def passed_through(
    request: web.Request,
    upstream: Upstream,
    path: str,
    *,
    principal: Principal,
    idle_seconds: float = IDLE_SECONDS,
) -> web.StreamResponse:
    """Answer with what `upstream` answers, part by part, however much it is and however long it lasts.

    A part is read when the one before has been taken off by the client, so about 200 kB are held at most. It ends
    with the upstream's answer; when the client has gone, the upstream's connection is closed; and when nothing could
    be read or written for `idle_seconds`: an endless stream is expected to send a sign of life more often. An answer
    that breaks off is broken off here as well, so that the client does not take it for the whole.

    Raises:
        Problem: as `Upstream.stream`, before anything has been answered.
    """
    headers = {name: request.headers[name] for name in _SENT_HEADERS if name in request.headers}
    asked = upstream.stream(request.method, path, principal=principal, headers=headers, idle_seconds=idle_seconds)
    async with asked as answer:
        relayed = {name: answer.headers[name] for name in _RELAYED_HEADERS if name in answer.headers}
        relayed["Cache-Control"] = "private, no-store"
        response = web.StreamResponse(status=answer.status, headers=relayed)
        try:
            await response.prepare(request)
            async for part in answer.content.iter_any():
                async with asyncio.timeout(idle_seconds):
                    await response.write(part)
            await response.write_eof()
        except ConnectionResetError:
            _note(request, "client")
        except (aiohttp.ClientError, TimeoutError) as error:
            _note(request, type(error).__name__)
            if request.transport is not None:
                request.transport.abort()
        return response


def _note(request: web.Request, broken_off: str) -> None:
    fields = request.get(LOG_FIELDS)  # routes that the frame knows to be streams have none
    if fields is not None:
        fields["broken_off"] = broken_off

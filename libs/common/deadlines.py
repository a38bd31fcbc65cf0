"""How long a caller still waits, told from service to service."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from libs.common.problems import Problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
HEADER = "Relaydesk-Deadline-Ms"


def seconds_left(headers: Mapping[str, str]) -> float | None:
    """What the header says, in seconds; None without it or when it is no number of milliseconds."""
    text = headers.get(HEADER)
    return int(text) / 1000 if text is not None and len(text) <= 9 and text.isascii() and text.isdigit() else None


@web.middleware
async def keep(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give work up when nobody waits for its answer any more.

    Raises:
        Problem: `deadline_exceeded` (504) when the handler has not answered in time. What it awaits with
            `background.finish` has been finished all the same.
    """
    seconds = seconds_left(request.headers)
    if seconds is None:
        return await handler(request)
    try:
        async with asyncio.timeout(seconds) as timeout:
            return await handler(request)
    except TimeoutError as error:
        if timeout.expired():
            raise Problem("deadline_exceeded", "The caller's time was over.") from error
        raise

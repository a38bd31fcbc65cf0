"""What every answer is given on its way out, if it does not have it already."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import hdrs, web

from libs.common.security import NOSNIFF, SECURITY_HEADERS
from services.gateway.edge.proxies import CLIENT

HSTS: Final = {"Strict-Transport-Security": "max-age=31536000"}  # RFC 6797: counts only over https
_UNSTORED: Final = "no-store"

Hook = Callable[[web.Request, web.StreamResponse], Awaitable[None]]


async def add_security_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Add what is missing, and take away what tells of versions.

    An answer with the first of the headers was made ahead and has them all. One that says nothing of caches is stored
    by none: a 404 could be.
    """
    headers = response.headers
    headers.pop(hdrs.SERVER, None)
    if NOSNIFF not in headers:
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)
    if "Cache-Control" not in headers:
        headers["Cache-Control"] = _UNSTORED


async def add_hsts(request: web.Request, response: web.StreamResponse) -> None:
    client = request.get(CLIENT)
    if client is not None and client.scheme == "https":
        response.headers.update(HSTS)

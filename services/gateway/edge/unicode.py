"""Requests whose head is not text."""

from aiohttp import web

from libs.common.problems import Problem
from libs.common.service import Handler


@web.middleware
async def refuse_malformed_text(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a path or header that is not UTF-8.

    aiohttp decodes such bytes to lone surrogates, which nothing further down could encode again: not a hash, not an
    upstream request, not an answer.

    Raises:
        Problem: `malformed_request` (400).
    """
    if not _is_text(request.raw_path):
        raise Problem("malformed_request", "The path is not UTF-8.")
    for name, value in request.headers.items():
        if not _is_text(value):
            raise Problem("malformed_request", f"The header {name} is not UTF-8.")
    return await handler(request)


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Answers that are the same for everybody: caches may keep them, and a CDN is told by which names to forget them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import web

from services.gateway.answers.codings import IDENTITY, coding_for, encoded
from services.gateway.answers.stored import etag_in, matches

SURROGATE_KEY: Final = "Surrogate-Key"
DYNAMIC: Final = "public, max-age=300"
IMMUTABLE: Final = "public, max-age=31536000, immutable"  # only where the address changes with the content


class PublicAnswer:
    """A document that is made once. `surrogate_keys` are what a CDN purges it by; `headers` are further ones."""

    def __init__(
        self,
        body: bytes,
        content_type: str,
        *,
        surrogate_keys: Sequence[str],
        cache_control: str = DYNAMIC,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._headers = {
            "Cache-Control": cache_control,
            SURROGATE_KEY: " ".join(surrogate_keys),
            "Vary": "Accept-Encoding",
            **(headers or {}),
        }
        self._content_type = content_type
        self._etag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        self._bodies = {IDENTITY: body}

    async def get(self, request: web.Request) -> web.Response:
        """200, or 304 for a client that has it; encoded as the client likes best."""
        coding = coding_for(self._bodies[IDENTITY], request.headers.get("Accept-Encoding"))
        headers = {**self._headers, "ETag": self._etag if coding == IDENTITY else etag_in(self._etag, coding)}
        if_none_match = ",".join(request.headers.getall("If-None-Match", ()))
        if matches(if_none_match, self._etag):
            return web.Response(status=304, headers=headers)
        body = self._bodies.get(coding)
        if body is None:
            body = self._bodies[coding] = encoded(self._bodies[IDENTITY], coding)
        if coding != IDENTITY:
            headers["Content-Encoding"] = coding
        return web.Response(body=body, headers={"Content-Type": self._content_type, **headers})

"""Cached reads: principal → L1 → L2 → upstream, and the answer written as it was stored."""

import hashlib
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from aiohttp import web

from libs.common.cache.readthrough import Loaded, ReadThroughCache
from libs.common.consistency import AS_OF_HEADER, HEADER, PRIMARY_HEADER, Position, Requirement
from libs.common.identity import Principal
from libs.common.service import LOG_FIELDS
from services.gateway.forwarding import relayed, upstream_path
from services.gateway.upstream import Answer, Upstream, UpstreamProblem

_STORED_HEADERS = ("Content-Type", "ETag", "Link")


class CachedReads:
    def __init__(self, cache: ReadThroughCache, *, l2_seconds: int) -> None:
        self._cache = cache
        self._l2_seconds = l2_seconds

    async def answer(
        self,
        request: web.Request,
        principal: Principal,
        upstream: Upstream,
        *,
        key_type: str,
        tags: Sequence[str],
        query: Mapping[str, str] | None = None,
        consistent: bool = True,
    ) -> web.Response:
        """Answer a GET from the cache or from `upstream`.

        The key names the tenant, the role, the path and the normalised query: it must not mean another thing to
        another user of that role, and `query` is what to ask instead of a request's query that does. A request's
        consistency token is honoured where the upstream knows positions (`consistent`).

        Raises:
            Problem: `invalid_parameter` (400) for a malformed token, 404 as `path_id`, and what `call` raises.
        """
        token = request.headers.get(HEADER) if consistent else None
        need = Position.from_token(token) if token else None
        path = upstream_path(request)
        if asked := (request.query if query is None else query):
            path += "?" + urlencode(sorted(asked.items()))
        log_fields = request[LOG_FIELDS]

        async def load(requirement: Requirement) -> Loaded:
            answer = await upstream.call("GET", path, principal=principal, headers=_require(requirement))
            log_fields["upstream_ms"] = round(answer.duration_ms, 2)
            if answer.status != 200:
                raise UpstreamProblem(answer)
            return _loaded(answer)

        try:
            entry, outcome = await self._cache.get(
                f"{principal.organization_id}:{principal.role}:{path}",
                key_type=key_type,
                tags=tags,
                need=need,
                seconds=self._l2_seconds,
                load=load,
            )
        except UpstreamProblem as problem:
            return relayed(problem.answer)
        log_fields["cache"] = outcome
        headers = {**entry.headers, "Cache-Control": "private, no-cache", "Relaydesk-Cache": outcome}
        if entry.consistency is not None:
            headers[HEADER] = entry.consistency.token()
        if _matches(request.headers.getall("If-None-Match", ()), entry.headers["ETag"]):
            del headers["Content-Type"]
            return web.Response(status=304, headers=headers)
        return web.Response(body=entry.body, headers=headers)

    async def wrote(self, tags: Sequence[str], answer: Answer) -> None:
        """After a write: nobody is answered with what it made old, its writer first of all."""
        position = answer.headers.get(HEADER)
        if position is not None:
            await self._cache.bump(tags, Position.from_token(position))


def _require(requirement: Requirement) -> dict[str, str]:
    headers = {}
    if requirement.position is not None:
        headers[HEADER] = requirement.position.token()
    if requirement.primary:
        headers[PRIMARY_HEADER] = "1"
    return headers


def _loaded(answer: Answer) -> Loaded:
    headers = {name: answer.headers[name] for name in _STORED_HEADERS if name in answer.headers}
    headers.setdefault("ETag", f'"{hashlib.sha256(answer.body).hexdigest()[:24]}"')
    as_of, consistency = answer.headers.get(AS_OF_HEADER), answer.headers.get(HEADER)
    return Loaded(
        answer.body,
        headers,
        as_of=Position.from_token(as_of) if as_of else None,
        consistency=Position.from_token(consistency) if consistency else None,
    )


def _matches(if_none_match: Sequence[str], etag: str) -> bool:
    """RFC 9110, section 13.1.2: weak comparison against a list, which may take several lines, or `*`."""
    candidates = [item.strip().removeprefix("W/") for line in if_none_match for item in line.split(",")]
    return "*" in candidates or etag in candidates

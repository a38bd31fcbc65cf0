"""Cached reads: principal → L1 → L2 → upstream, and the answer written as it was stored."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from libs.common.cache.loads import Lives, Loaded
from libs.common.cache.readthrough import ReadThroughCache
from libs.common.cache.ticket_tags import organization_tag
from libs.common.consistency import AS_OF_HEADER, HEADER, PRIMARY_HEADER, Position, Requirement
from libs.common.identity import Principal
from libs.common.models import Role
from libs.common.problems import Problem
from libs.common.service import LOG_FIELDS, route_of
from services.gateway.answers.codings import coding_for
from services.gateway.answers.hits import Hit, Hits
from services.gateway.answers.stored import body_of, headers_of, matches
from services.gateway.callers.authentication import Caller
from services.gateway.upstreams.forwarding import relayed, upstream_path
from services.gateway.upstreams.upstream import Answer, Upstream, UpstreamProblem

MISSING_SECONDS = 5  # how long it is remembered that there is no such ticket
_STORED_HEADERS = ("Content-Type", "ETag", "Link")
_CACHED_STATUSES = frozenset({200, 404})
_AWAY_STATUSES = frozenset({502, 503, 504})


class CachedReads:
    def __init__(self, cache: ReadThroughCache, hits: Hits, *, l2_seconds: int, stale_seconds: int) -> None:
        self._cache = cache
        self._hits = hits
        self._lives = Lives(l2_seconds, missing=MISSING_SECONDS, stale=stale_seconds)

    async def answer(
        self,
        request: web.Request,
        caller: Caller,
        upstream: Upstream,
        *,
        key_type: str,
        tags: Sequence[str],
        watched: Sequence[str] = (),
        parts_of: Callable[[Answer], tuple[str, ...]] | None = None,
        query: Mapping[str, str] | None = None,
        consistent: bool = True,
    ) -> web.Response:
        """Answer a GET from the cache or from `upstream`.

        `tags` and `watched` as in `Question`; `parts_of` finds the parts in an answer. The key names the tenant, the
        role, the path and the normalised query: it must not mean another thing to another user of that role, and
        `query` is what to ask instead of a request's query that does. A request's consistency token is honoured where
        the upstream knows positions (`consistent`). While the upstream is away, what was cached before is given, marked
        `stale`, if it is not too old.

        Raises:
            Problem: `invalid_parameter` (400) for a malformed token, 404 as `path_id`, and what `call` raises.
        """
        principal = caller.principal
        token = request.headers.get(HEADER) if consistent else None
        need = Position.from_token(token) if token else None
        path = asked_path(upstream_path(request), request.query if query is None else query)
        key = key_of(principal, path)
        log_fields = request[LOG_FIELDS]
        hit = Hit(key, key_type, route_of(request), caller, log_fields, consistent=consistent)

        async def load(requirement: Requirement) -> Loaded:
            answer = await upstream.call("GET", path, principal=principal, headers=_require(requirement))
            log_fields["upstream_ms"] = round(answer.duration_ms, 2)
            if answer.status not in _CACHED_STATUSES:
                raise UpstreamProblem(answer)
            loaded = _loaded(answer)
            if parts_of is None or answer.status != 200:
                return loaded
            return msgspec.structs.replace(loaded, parts=parts_of(answer))

        try:
            entry, outcome = await self._cache.get(
                key,
                key_type=key_type,
                tags=[*tags, organization_tag(principal.organization_id)],
                watched=watched,
                need=need,
                lives=self._lives,
                load=load,
                is_away=_is_away,
            )
        except UpstreamProblem as problem:
            return relayed(problem.answer)
        log_fields["cache"] = outcome
        if entry.status == 200 and outcome != "stale":
            self._hits.remember(request, hit)
        if_none_match = ",".join(request.headers.getall("If-None-Match", ()))
        not_modified = entry.status == 200 and matches(if_none_match, entry.headers["ETag"])
        coding = coding_for(entry.body, request.headers.get("Accept-Encoding"))
        headers = headers_of(entry, coding, outcome, not_modified=not_modified)
        if not_modified:
            return web.Response(status=304, headers=headers)
        return web.Response(status=entry.status, body=body_of(entry, coding), headers=headers)

    async def wrote(self, tags: Sequence[str], answer: Answer) -> None:
        """After a write: nobody is answered with what it made old, its writer first of all."""
        position = answer.headers.get(HEADER)
        if position is not None:
            await self._cache.bump(tags, Position.from_token(position))


def asked_path(path: str, query: Mapping[str, str]) -> str:
    """A path with its query in one order."""
    return f"{path}?{urlencode(sorted(query.items()))}" if query else path


def key_of(principal: Principal, path: str) -> str:
    """Where an answer is kept: two users share it if they are of one organization and role and ask the same."""
    return f"{key_beginning(principal.organization_id, principal.role)}{path}"


def key_beginning(organization_id: object, role: Role) -> str:
    """What comes before the path in the keys of an organization's answers to a role."""
    return f"{organization_id}:{role}:"


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
    body = answer.body if answer.status == 200 else _without_trace_id(answer.body)
    as_of, consistency = answer.headers.get(AS_OF_HEADER), answer.headers.get(HEADER)
    return Loaded(
        body,
        headers,
        status=answer.status,
        as_of=Position.from_token(as_of) if as_of else None,
        consistency=Position.from_token(consistency) if consistency else None,
    )


def _without_trace_id(problem: bytes) -> bytes:
    """An error that will be told again is not that of one request."""
    details: dict[str, object] = msgspec.json.decode(problem)
    details.pop("trace_id", None)
    return msgspec.json.encode(details)


def _is_away(error: Exception) -> bool:
    """Whether a load failed for want of the service, and not for what was asked."""
    if isinstance(error, UpstreamProblem):
        return error.answer.status in _AWAY_STATUSES
    return isinstance(error, Problem) and error.status in _AWAY_STATUSES

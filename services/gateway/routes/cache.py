"""`/api/admin/cache`: what the cache holds, and clearing it by hand."""

import asyncio
import os
from collections.abc import Iterator, Mapping

import msgspec
from aiohttp import web
from prometheus_client import Counter
from redis.exceptions import RedisError

from libs.common.cache.administration import (
    CacheCleared,
    CacheFigures,
    ClearCache,
    Clearing,
    HotKey,
    KeyTypeFigures,
    LocalFigures,
    SharedFigures,
)
from libs.common.cache.readthrough import ReadThroughCache
from libs.common.cache.search_tags import searches
from libs.common.cache.ticket_tags import lists, organization_tag, tickets_tag
from libs.common.consistency import HEADER, PRIMARY_HEADER
from libs.common.history import AuditActor, CacheClear
from libs.common.identity import Principal
from libs.common.metrics import CACHE_HITS, CACHE_MISSES
from libs.common.models import Role
from libs.common.problems import Problem, decode_body, unavailable
from libs.common.service import LOG_FIELDS, json_response, read_body, read_json_body
from services.gateway.answers.reads import key_beginning
from services.gateway.callers.authentication import Authenticator
from services.gateway.upstreams.upstream import Upstream

_HOTTEST = 20
_NO_STORE = {"Cache-Control": "no-store"}
_clear_cache = msgspec.json.Decoder(ClearCache)


class CacheRoutes:
    def __init__(self, authenticator: Authenticator, cache: ReadThroughCache, tickets: Upstream) -> None:
        self._authenticator = authenticator
        self._cache = cache
        self._tickets = tickets
        self._scanning = asyncio.Lock()  # it goes through all of Redis: one at a time

    async def figures(self, request: web.Request) -> web.Response:
        principal = await self._admin(request)
        state = await self._cache.state()
        reads = list(_reads())
        l2 = state.shared
        body = CacheFigures(
            process=os.getpid(),
            l1=LocalFigures(state.entries, state.items, state.listening),
            l2=SharedFigures(l2.keys, l2.used_bytes, l2.limit_bytes or None, l2.evicted) if l2 is not None else None,
            loads_under_way=state.flights,
            reads=reads,
            hit_rate=_rate(sum(one.l1_hits + one.l2_hits for one in reads), sum(one.misses for one in reads)),
            hottest=self._hottest(principal),
        )
        return json_response(body, headers=dict(_NO_STORE))

    async def clear(self, request: web.Request) -> web.Response:
        """First the audit log, then the cache: what is not on record is not done."""
        principal = await self._admin(request)
        wanted = await _wanted(request)
        what = _told(wanted)
        if wanted.tag:
            await self._own_ticket(wanted.tag, principal)
        request[LOG_FIELDS]["cleared"] = what.cleared
        position = await self._record(principal, what)
        try:
            if wanted.prefix:
                async with self._scanning:
                    removed = await self._clear_prefix(principal, wanted.prefix)
                what = msgspec.structs.replace(what, removed=removed)
            else:
                await self._cache.clear_tags(_tags(wanted, principal))
        except (RedisError, OSError, TimeoutError) as error:
            raise unavailable("The cache") from error
        return json_response(what, headers={**_NO_STORE, HEADER: position})

    async def _admin(self, request: web.Request) -> Principal:
        principal = (await self._authenticator.authenticate(request)).principal
        if principal.role is not Role.ADMIN:
            raise Problem("permission_denied", "Only admins may look into the cache or clear it.")
        return principal

    def _hottest(self, principal: Principal) -> list[HotKey]:
        """Of the caller's organization: the keys of others do not begin with its id."""
        found = [
            HotKey(key.removeprefix(beginning), role, hits)
            for role in Role
            for beginning in [key_beginning(principal.organization_id, role)]
            for key, hits in self._cache.hottest(beginning, _HOTTEST)
        ]
        return sorted(found, key=lambda one: -one.hits)[:_HOTTEST]

    async def _own_ticket(self, tag: str, principal: Principal) -> None:
        """Refuse to clear a ticket that the caller may not read: its tag does not say whose it is."""
        kind, _, ticket_id = tag.partition(":")
        if kind == "ticket":
            path, headers = f"/api/tickets/{ticket_id}", {PRIMARY_HEADER: "1"}
            answer = await self._tickets.call("GET", path, principal=principal, headers=headers)
            if answer.status == 404:
                raise Problem("ticket_not_found", f"There is no ticket {ticket_id!r}.")
            if answer.status != 200:
                raise unavailable("The tickets service")

    async def _record(self, principal: Principal, what: CacheCleared) -> str:
        """Have it audited; the consistency token from which that can be read."""
        details = {"cleared": str(what.cleared)} | ({"value": what.value} if what.value is not None else {})
        actor = AuditActor(principal.user_id, principal.credential, principal.name)
        answer = await self._tickets.call(
            "POST",
            "/internal/audit/cache-clear",
            principal=None,
            headers={"Content-Type": "application/json"},
            body=msgspec.json.encode(CacheClear(principal.organization_id, actor, details)),
        )
        if answer.status != 204:
            raise unavailable("The audit log")
        return answer.headers[HEADER]

    async def _clear_prefix(self, principal: Principal, prefix: str) -> int:
        organization = str(principal.organization_id)
        return await self._cache.clear_keys(organization, [key_beginning(organization, role) + prefix for role in Role])


async def _wanted(request: web.Request) -> ClearCache:
    """What is to be cleared; no body is as good as an empty object."""
    if not await read_body(request):
        return ClearCache()
    wanted: ClearCache = decode_body(_clear_cache, await read_json_body(request))
    if wanted.tag and wanted.prefix:
        raise Problem("validation_failed", "Name a tag or a prefix, not both.")
    return wanted


def _told(wanted: ClearCache) -> CacheCleared:
    if wanted.tag:
        return CacheCleared(Clearing.TAG, wanted.tag, None)
    if wanted.prefix:
        return CacheCleared(Clearing.PREFIX, wanted.prefix, None)
    return CacheCleared(Clearing.ORGANIZATION, None, None)


def _tags(wanted: ClearCache, principal: Principal) -> list[str]:
    """The cache's own names for what a client calls a tag."""
    organization_id = principal.organization_id
    if not wanted.tag:
        return [organization_tag(organization_id)]
    match wanted.tag:
        case "tickets":
            return lists(organization_id)
        case "search":
            return searches(organization_id)
        case ticket:
            return [tickets_tag(organization_id), ticket]


def _reads() -> Iterator[KeyTypeFigures]:
    hits, misses = _counts(CACHE_HITS), _counts(CACHE_MISSES)
    for key_type in sorted({labels["key_type"] for labels, _count in [*hits, *misses]}):
        l1, l2 = (_sum(hits, {"level": level, "key_type": key_type}) for level in ("l1", "l2"))
        missed = _sum(misses, {"key_type": key_type})
        yield KeyTypeFigures(key_type, l1, l2, missed, _rate(l1 + l2, missed))


def _counts(counter: Counter) -> list[tuple[Mapping[str, str], int]]:
    return [
        (sample.labels, int(sample.value))
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    ]


def _sum(counts: list[tuple[Mapping[str, str], int]], labels: Mapping[str, str]) -> int:
    return sum(count for found, count in counts if found == labels)


def _rate(hits: int, misses: int) -> float | None:
    return round(hits / (hits + misses), 4) if hits + misses else None

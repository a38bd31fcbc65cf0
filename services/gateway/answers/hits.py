"""Requests that come again: answered from L1 without being routed.

What follows from a path, a query and a credential is remembered once a request was answered from the cache: who asks,
what the entry's key is, what goes to the log. When the same comes again and the credential, the entry and the limit
still hold, the stored bytes are written. Anything out of the ordinary takes the way of every other request.
"""

import time
from collections.abc import Mapping

import cachebox
from aiohttp import HttpVersion11, web
from aiohttp.http import RawRequestMessage

from libs.common import tracing
from libs.common.cache.local import Entry
from libs.common.cache.readthrough import ReadThroughCache
from libs.common.consistency import HEADER, Position
from libs.common.problems import Problem
from libs.common.request_records import record
from services.gateway.answers.codings import coding_for
from services.gateway.answers.stored import matches, whole
from services.gateway.callers.authentication import Authenticator, Caller
from services.gateway.edge.proxies import TrustedProxies
from services.gateway.edge.security import HSTS
from services.gateway.limits.limits import Limits

_REMEMBERED = 20_000
_HSTS = "".join(f"{name}: {value}\r\n" for name, value in HSTS.items()).encode()


class Hit:
    """What is known of a path and a credential that were answered from the cache."""

    __slots__ = ("consistent", "fields", "key", "key_type", "principal", "route", "token")

    def __init__(
        self,
        key: str,
        key_type: str,
        route: str,
        caller: Caller,
        fields: Mapping[str, object],
        *,
        consistent: bool,
    ) -> None:
        self.key = key
        self.key_type = key_type
        self.route = route
        self.principal = caller.principal
        self.token = caller.token
        self.fields = {**fields, "cache": "l1"}
        self.consistent = consistent


class Hits:
    """Answers what it can at once, or says None."""

    def __init__(
        self,
        cache: ReadThroughCache,
        authenticator: Authenticator,
        limits: Limits,
        proxies: TrustedProxies,
        *,
        has_origins: bool,
    ) -> None:
        """`has_origins`: whether answers differ by origin (CORS)."""
        self._cache = cache
        self._authenticator = authenticator
        self._limits = limits
        self._proxies = proxies
        self._vary = b"Vary: Origin\r\n" if has_origins else b""
        self._known: cachebox.LRUCache[tuple[str, str], Hit] = cachebox.LRUCache(_REMEMBERED)

    def remember(self, request: web.Request, hit: Hit) -> None:
        """This request would be answered like that again."""
        credential = _credential(request.headers)
        if credential is not None:
            self._known[(request.raw_path, credential)] = hit

    def answer(self, message: RawRequestMessage, peer: str) -> bytes | None:
        """All bytes of the answer, if it is at hand."""
        started = time.perf_counter()
        headers = message.headers
        credential = _credential(headers)
        if credential is None or message.method != "GET":
            return None
        hit = self._known.get((message.path, credential))
        if hit is None or not self._holds(hit, message):
            return None
        entry = self._entry(hit, headers)
        if entry is None:
            return None
        told = self._limits.take(self._limits.of_principal(hit.principal))
        if told is None:
            return None
        if_none_match = headers.get("If-None-Match")
        not_modified = if_none_match is not None and matches(if_none_match, entry.headers["ETag"])
        coding = coding_for(entry.body, headers.get("Accept-Encoding"))
        client = self._proxies.client(peer, headers)
        more = told.lines + self._vary + (_HSTS if client.scheme == "https" else b"")
        status = 304 if not_modified else entry.status
        trace_id = tracing.answered("GET", hit.route, status, headers)
        record("GET", hit.route, status, started, {**hit.fields, "client": client.address, "trace_id": trace_id})
        return whole(entry, coding, not_modified=not_modified, more=more)

    def _holds(self, hit: Hit, message: RawRequestMessage) -> bool:
        """Whether it is still the same who asks, in an ordinary way."""
        caller = self._authenticator.remembered(hit.token)
        if caller is None or (caller.principal is not hit.principal and caller.principal != hit.principal):
            return False
        hit.principal = caller.principal
        headers = message.headers
        return "Origin" not in headers and "Expect" not in headers and message.version == HttpVersion11

    def _entry(self, hit: Hit, headers: Mapping[str, str]) -> Entry | None:
        token = headers.get(HEADER) if hit.consistent else None
        try:
            need = Position.from_token(token) if token else None
        except Problem:
            return None
        entry = self._cache.at_hand(hit.key, hit.key_type, need)
        return entry if entry is not None and entry.status == 200 else None


def _credential(headers: Mapping[str, str]) -> str | None:
    """The header that says who asks."""
    return headers.get("Authorization") or headers.get("Cookie")

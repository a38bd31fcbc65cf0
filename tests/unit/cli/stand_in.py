"""A few routes of the public API with a memory and faults on demand."""

import asyncio
import json
from typing import Any

import msgspec
import socketio
from aiohttp import web

from libs.common.models import NewTicket
from libs.common.problems import Problem

KEY = "rdk_test"


class StandIn:
    """`faults` are answered first, one a bulk request: a status, or `drop` to close the connection.

    After `hold_after` answers, bulk requests wait for `hold`; each that does is told by `held`.
    """

    def __init__(self) -> None:
        self.url = ""
        self.tickets: dict[str, NewTicket] = {}
        self.requests: list[int] = []
        self.bodies: list[int] = []
        self.faults: list[int | str] = []
        self.refused_titles: set[str] = set()
        self.hold: asyncio.Event | None = None
        self.hold_after = 0
        self.held: asyncio.Queue[None] = asyncio.Queue()
        self.most_at_once = 0
        self.health: dict[str, Any] = {"status": "ok", "checks": [{"name": "redis", "status": "ok"}]}
        self.found: dict[str, Any] = {"results": [], "took_ms": 1.0}
        self.queries: list[dict[str, str]] = []
        self.cache: dict[str, Any] = {}
        self.cleared: list[Any] = []
        self.tokens = 0
        self.sockets = socketio.AsyncServer(async_mode="aiohttp")
        self.sockets.on("connect", self._connect)
        self.sockets.on("subscribe", self._subscribe)
        self.script: list[list[dict[str, Any]] | None] = []
        self.subscription: dict[str, Any] = {"ok": True, "room": "organization"}
        self._at_once = 0
        self.app = web.Application(client_max_size=1 << 21)
        self.app.router.add_get("/api/session", self._session)
        self.app.router.add_post("/api/tickets/bulk", self._bulk)
        self.app.router.add_get("/api/health", self._health)
        self.app.router.add_get("/api/search", self._search)
        self.app.router.add_get("/api/admin/cache", self._cache)
        self.app.router.add_post("/api/admin/cache/clear", self._clear_cache)
        self.app.router.add_post("/api/realtime/token", self._token)
        self.sockets.attach(self.app)

    @staticmethod
    def _problem(code: str, status: int | None = None, headers: dict[str, str] | None = None) -> web.Response:
        details = Problem(code).details("0af7")
        return web.Response(
            status=status or details.status,
            body=msgspec.json.encode(details),
            content_type="application/problem+json",
            headers=headers,
        )

    def _stranger(self, request: web.Request) -> web.Response | None:
        known = request.headers.get("Authorization") == f"Bearer {KEY}"
        return None if known else self._problem("authentication_required")

    async def _session(self, request: web.Request) -> web.Response:
        return self._stranger(request) or web.json_response(
            {
                "user": {
                    "id": "018f0000-0000-7000-8000-000000000001",
                    "email": "a@acme.example",
                    "name": "A",
                    "role": "admin",
                },
                "organization": {"id": "018f0000-0000-7000-8000-000000000002", "slug": "acme", "name": "Acme"},
                "credential": "api_key",
            }
        )

    async def _bulk(self, request: web.Request) -> web.StreamResponse:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._create(request)
        finally:
            self._at_once -= 1

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, int):
                code = {503: "service_unavailable", 504: "deadline_exceeded", 401: "authentication_required"}[fault]
                return self._problem(code, headers={"Retry-After": "0"} if fault >= 500 else None)
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if self.hold is not None and len(self.requests) >= self.hold_after:
            self.held.put_nowait(None)
            await self.hold.wait()
        tickets = [msgspec.convert(row, NewTicket) for row in json.loads(body)["tickets"]]
        self.bodies.append(len(body))
        self.requests.append(len(tickets))
        return web.json_response({"results": [self._fate(index, ticket) for index, ticket in enumerate(tickets)]})

    def _fate(self, index: int, ticket: NewTicket) -> dict[str, Any]:
        assert ticket.external_id
        if ticket.title in self.refused_titles:
            problem = {"code": "validation_failed", "title": "Refused.", "detail": "not this one"}
            return {"index": index, "status": "refused", "problem": problem}
        status = "exists" if ticket.external_id in self.tickets else "created"
        self.tickets.setdefault(ticket.external_id, ticket)
        return {"index": index, "status": status, "number": len(self.tickets)}

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response(self.health, status=200 if self.health["status"] == "ok" else 503)

    async def _search(self, request: web.Request) -> web.Response:
        self.queries.append(dict(request.query))
        return self._stranger(request) or web.json_response(self.found)

    async def _cache(self, request: web.Request) -> web.Response:
        return self._stranger(request) or web.json_response(self.cache)

    async def _clear_cache(self, request: web.Request) -> web.Response:
        if stranger := self._stranger(request):
            return stranger
        wanted = await request.json()
        self.cleared.append(wanted)
        kind, value = next(iter(wanted.items()), ("organization", None))
        removed = 1234 if kind == "prefix" else None
        return web.json_response({"cleared": kind, "value": value, "removed": removed})

    async def _token(self, request: web.Request) -> web.Response:
        self.tokens += 1
        answer = {"token": f"token-{self.tokens}", "expires_at": "2030-01-01T00:00:00Z", "url": self.url}
        return self._stranger(request) or web.json_response(answer, status=201)

    async def _connect(self, _sid: str, _environ: dict[str, Any], auth: dict[str, str] | None) -> bool:
        return (auth or {}).get("token") == f"token-{self.tokens}"

    async def _subscribe(self, sid: str, payload: dict[str, str]) -> dict[str, Any]:
        """Play the next part of the script, up to the next None, which cuts the connection."""
        assert payload == {"room": "organization"}
        if self.subscription["ok"]:
            self.sockets.start_background_task(self._play, sid)
        return self.subscription

    async def _play(self, sid: str) -> None:
        while self.script:
            batch = self.script.pop(0)
            if batch is None:
                await self.sockets.disconnect(sid)
                return
            await self.sockets.emit("notifications", batch, to=sid)

"""Sockets: who may connect, which rooms a socket joins, and how sockets end."""

import asyncio
import time
import uuid
from typing import Any, Literal

import msgspec
import socketio
import structlog
from aiohttp import web
from redis.exceptions import RedisError
from socketio.exceptions import ConnectionRefusedError as SocketRefused

from libs.common.identity import Principal, Verifier
from libs.common.problems import Problem, unavailable
from services.notifier.delivery import Delivery
from services.notifier.engine import MESSAGE_BYTES
from services.notifier.metrics import SOCKETS
from services.notifier.revocations import Revocations

PATH = "/socket.io/"
EVENT = "notifications"
UPGRADE_SECONDS = 10.0
_CLOSE_SECONDS = 10.0
_PATIENCE_SECONDS = 1.0
_RECEIVE_SECONDS = 5.0  # more than a subscription waits for Redis
log = structlog.get_logger()


class Subscription(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of `subscribe` and `unsubscribe`."""

    room: Literal["organization"]


class _Connection:
    """An authenticated socket. `ends` is the timer that closes it when its token ends."""

    def __init__(self, principal: Principal, ends: asyncio.TimerHandle) -> None:
        self.principal = principal
        self.ends = ends
        self.subscribed = False
        self.since = time.monotonic()


def room_of(organization_id: uuid.UUID) -> str:
    return f"organization:{organization_id}"


class Sockets:
    """The sockets of this instance."""

    def __init__(
        self, server: socketio.AsyncServer, verifier: Verifier, delivery: Delivery, revocations: Revocations
    ) -> None:
        self._server = server
        self._verifier = verifier
        self._delivery = delivery
        self._revocations = revocations
        self._connections: dict[str, _Connection] = {}
        self._by_credential: dict[str, set[str]] = {}
        self._requests: set[asyncio.Task[Any]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        server.on("connect", self._on_connect)
        server.on("disconnect", self._on_disconnect)
        server.on("subscribe", self._on_subscribe)
        server.on("unsubscribe", self._on_unsubscribe)

    def add_routes(self, app: web.Application) -> None:
        for method in ("GET", "POST", "OPTIONS"):
            app.router.add_route(method, PATH, self._handle)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        """Give a request to Socket.IO.

        Raises:
            Problem: `service_unavailable` for a new connection while revocations cannot be read. Clients retry an
                HTTP error by themselves, a refused CONNECT they do not. `body_too_large`, `malformed_request`: see
                `_receive`.
        """
        session = request.query.get("sid")
        if session is None and request.method == "GET":
            try:
                await self._revocations.wait_until_current(_PATIENCE_SECONDS)
            except TimeoutError as error:
                raise unavailable("The list of revoked credentials") from error
        upgrade = (
            asyncio.get_running_loop().call_later(UPGRADE_SECONDS, self._end_upgrade, session, request)
            if session is not None and "Upgrade" in request.headers
            else None
        )
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (a handler runs in a task)
        self._requests.add(task)
        try:
            response: web.StreamResponse = await (
                self._receive(request) if request.method == "POST" else self._server.handle_request(request)
            )
        finally:
            self._requests.discard(task)
            if upgrade is not None:
                upgrade.cancel()
            self._settle(session, upgraded=upgrade is not None)
        return response

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        """Take packets from a polling client.

        The engine ends the session of a client that sends what it should not. Then it waits until that client has
        fetched the goodbye, which may be never; about a session that has ended it raises KeyError or
        UnboundLocalError.
        """
        if (request.content_length or 0) > MESSAGE_BYTES:
            raise Problem("body_too_large")
        try:
            async with asyncio.timeout(_RECEIVE_SECONDS):
                response: web.StreamResponse = await self._server.handle_request(request)
        except (TimeoutError, KeyError, UnboundLocalError) as error:
            raise Problem("malformed_request", "The packets were not accepted.") from error
        return response

    def _end_upgrade(self, session: str, request: web.Request) -> None:
        """Abort a websocket that has not finished its upgrade in time; the client goes on polling."""
        socket = self._server.eio.sockets.get(session)
        if socket is not None and not socket.upgraded and request.transport is not None:
            request.transport.abort()

    def _settle(self, session: str | None, *, upgraded: bool) -> None:
        """Mend what the engine leaves behind a request."""
        socket = self._server.eio.sockets.get(session)
        if socket is None:
            return
        if socket.closed:
            socket.queue.put_nowait(None)  # the poll of a client that has left would wait until its time is over
        elif upgraded and not socket.upgraded:
            socket.upgrading = False  # an upgrade that broke off, and nothing is sent while "upgrading"

    async def _on_connect(self, sid: str, _environ: dict[str, Any], auth: object = None) -> None:
        token = auth.get("token") if isinstance(auth, dict) else None
        try:
            principal, ends = self._verifier.realtime(token if isinstance(token, str) else None)
            if self._revocations.includes(principal.credential_id):
                raise Problem("authentication_required", "The token was refused: its credential was revoked.")
        except Problem as problem:
            log.info("socket_refused", code=problem.code, detail=problem.detail)
            raise SocketRefused(problem.title, {"code": problem.code, "detail": problem.detail}) from problem
        timer = asyncio.get_running_loop().call_later(max(0.0, ends - time.time()), self._end, sid)
        self._connections[sid] = _Connection(principal, timer)
        self._by_credential.setdefault(principal.credential_id, set()).add(sid)
        SOCKETS.inc()

    async def _on_disconnect(self, sid: str, reason: str) -> None:
        connection = self._connections.pop(sid, None)
        if connection is None:
            return
        connection.ends.cancel()
        principal = connection.principal
        sids = self._by_credential[principal.credential_id]
        sids.discard(sid)
        if not sids:
            del self._by_credential[principal.credential_id]
        if connection.subscribed:
            self._delivery.unwatch(principal.organization_id)
        SOCKETS.dec()
        log.info(
            "socket_closed",
            organization_id=str(principal.organization_id),
            user_id=str(principal.user_id),
            seconds=round(time.monotonic() - connection.since, 1),
            reason=reason,
        )

    async def _on_subscribe(self, sid: str, *payload: object) -> dict[str, object]:
        try:
            subscription = _subscription(payload)
            await self._join(sid)
        except Problem as problem:
            return {"ok": False, "code": problem.code, "detail": problem.detail}
        return {"ok": True, "room": subscription.room}

    async def _on_unsubscribe(self, sid: str, *payload: object) -> dict[str, object]:
        try:
            subscription = _subscription(payload)
        except Problem as problem:
            return {"ok": False, "code": problem.code, "detail": problem.detail}
        connection = self._connections.get(sid)
        if connection is not None and connection.subscribed:
            connection.subscribed = False
            organization_id = connection.principal.organization_id
            await self._server.leave_room(sid, room_of(organization_id))
            self._delivery.unwatch(organization_id)
        return {"ok": True, "room": subscription.room}

    async def _join(self, sid: str) -> None:
        connection = self._connections.get(sid)
        if connection is None:
            raise Problem("authentication_required")
        if connection.subscribed:
            return
        organization_id = connection.principal.organization_id
        try:
            await self._delivery.watch(organization_id)
        except (RedisError, OSError) as error:
            raise unavailable("The organization's feed") from error
        if sid not in self._connections:  # it was closed meanwhile
            self._delivery.unwatch(organization_id)
            raise Problem("authentication_required")
        await self._server.enter_room(sid, room_of(organization_id))
        connection.subscribed = True

    async def disconnect_credential(self, credential_id: str) -> None:
        """Close every socket that was opened by this session or API key."""
        for sid in list(self._by_credential.get(credential_id, ())):
            await self._server.disconnect(sid)

    def _end(self, sid: str) -> None:
        task = asyncio.create_task(self._server.disconnect(sid))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close_all(self, _app: web.Application) -> None:
        """End every connection on shutdown.

        The transports are closed without Socket.IO's DISCONNECT: to a client that packet means "stay away", while
        after a closed transport it reconnects, to another instance.
        """
        requests = list(self._requests)
        for task in requests:
            task.cancel()
        if requests:
            await asyncio.wait(requests, timeout=_CLOSE_SECONDS)
        await self._server.shutdown()


def _subscription(payload: tuple[object, ...]) -> Subscription:
    try:
        (only,) = payload
        return msgspec.convert(only, Subscription)
    except (ValueError, msgspec.ValidationError) as error:
        detail = str(error) if isinstance(error, msgspec.ValidationError) else "Expected one object"
        raise Problem("validation_failed", f'{detail}; expected {{"room": "organization"}}.') from error

"""The Socket.IO server: connection settings, the JSON of packets, and what python-engineio has no setting for."""

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import socketio
from aiohttp import web
from engineio.async_drivers.aiohttp import WebSocket
from socketio import packet

PING_INTERVAL_SECONDS = 25
PING_TIMEOUT_SECONDS = 60
MESSAGE_BYTES = 1_000_000
_ENGINE_PACKET_TYPES = frozenset("123456")  # 0 (OPEN) is the server's


class _Json:
    """The JSON module of Socket.IO packets: msgspec, which puts encoded items into a message as they are."""

    @staticmethod
    def dumps(value: Any, **_options: Any) -> str:
        return msgspec.json.encode(value).decode()

    @staticmethod
    def loads(text: str) -> Any:
        return msgspec.json.decode(text)


class _Packet(packet.Packet):  # type: ignore[misc]  # the library is not typed
    """A packet; one that is malformed, or binary, which no client of ours sends, ends the connection as Node's does."""

    json = _Json

    def __init__(self, *args: Any, encoded_packet: str | bytes | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if encoded_packet is not None:  # the library takes an empty message for an event
            self.decode(encoded_packet)

    def decode(self, encoded_packet: str | bytes) -> int:
        try:
            super().decode(encoded_packet)
        except (ValueError, TypeError, RecursionError, msgspec.DecodeError):
            self.packet_type = None
        match self.packet_type, self.data:
            case (packet.CONNECT | packet.DISCONNECT, _):
                pass
            case (packet.EVENT, [str(), *_]):
                pass
            case (packet.ACK, list()) if self.id is not None:
                pass
            case _:
                # What the library raises here it logs as an error of ours and then goes on.
                self.packet_type = packet.DISCONNECT
        return 0


class _WebSocket(WebSocket):  # type: ignore[misc]  # the library is not typed
    """The engine's websocket without permessage-deflate, which quadruples the memory of a connection (measured)."""

    async def __call__(self, environ: dict[str, Any]) -> web.WebSocketResponse:
        self._sock = web.WebSocketResponse(max_msg_size=self.server.max_http_buffer_size, compress=False)
        await self._sock.prepare(environ["aiohttp.request"])
        self.environ = environ
        await self.handler(self)
        return self._sock

    async def wait(self) -> str:
        """The next frame.

        Raises:
            OSError: when the connection has ended, or with a frame that is none of Engine.IO's: the engine closes
                the socket in good order after this, and after nothing else.
        """
        frame = await super().wait()
        if not isinstance(frame, str) or frame[:1] not in _ENGINE_PACKET_TYPES:
            raise OSError("not an Engine.IO packet")
        return frame


def _is_ours(record: logging.LogRecord) -> bool:
    """Leave out the engine's tracebacks for request bodies that are no Engine.IO payload."""
    return record.msg != "post request handler error"


def socket_server(allowed_origins: Sequence[str]) -> socketio.AsyncServer:
    """A server with the platform's connection settings that admits exactly these browser origins."""
    origins = frozenset(allowed_origins)

    def allowed(origin: str | None, _environ: dict[str, Any]) -> bool:
        return origin is not None and origin.lower() in origins

    engine_log = logging.getLogger("engineio.server")
    engine_log.addFilter(_is_ours)
    server = socketio.AsyncServer(
        async_mode="aiohttp",
        serializer=_Packet,
        transports=["websocket", "polling"],
        ping_interval=PING_INTERVAL_SECONDS,
        ping_timeout=PING_TIMEOUT_SECONDS,
        max_http_buffer_size=MESSAGE_BYTES,
        cors_allowed_origins=allowed,  # a function: an empty list would switch the check off
        http_compression=False,
        async_handlers=False,  # a socket's requests are answered in their order
        logger=logging.getLogger("socketio.server"),  # given, so that the library adds no handler of its own
        engineio_logger=engine_log,
    )
    server.eio._async = server.eio._async | {"websocket": _WebSocket}  # noqa: SLF001 (there is no parameter for it)
    return server

"""HTTP as bytes on a socket, and an upstream that notes what reaches it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from infra.local.ports import HOST
from tests.support.desk import Reply


class Upstream:
    """A stand-in for every service behind the gateway: it knows nobody and notes who asks."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        if request.path.startswith("/internal/"):
            self.asked.append(request.path)
        await request.read()
        return web.json_response({}, status=401 if request.path.startswith("/internal/") else 200)


@contextlib.asynccontextmanager
async def noting_upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", upstream.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        upstream.url = f"http://{HOST}:{runner.addresses[0][1]}"
        yield upstream
    finally:
        await runner.cleanup()


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def port(self) -> int:
        port: int = self.writer.get_extra_info("sockname")[1]
        return port

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> Reply:
        """The next answer."""
        async with asyncio.timeout(30):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Reply(int(status.split()[1]), headers, body)

    async def rest(self) -> bytes:
        """What comes until the server closes; nothing, if it has no more to say."""
        async with asyncio.timeout(30):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@contextlib.asynccontextmanager
async def connection(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def code_of(reply: Reply) -> str:
    told: str = msgspec.json.decode(reply.body)["code"]
    return told

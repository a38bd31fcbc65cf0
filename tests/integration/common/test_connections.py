"""Answers that are at hand are written before any route is known, and change nothing else on a connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.http import RawRequestMessage

from infra.local.ports import HOST
from libs.common.connections import SHORTCUT, Runner, end_connections
from libs.common.timeouts import TIMEOUTS, Timeouts
from tests.support.raw_http import Client, connection

AT_HAND = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nat hand"
LARGE = b"x" * 1_000_000
IDLE_SECONDS = 0.5


class Service:
    """Has `/hand` at hand and `/large` as well; everything else is routed."""

    def __init__(self) -> None:
        self.runner: Runner
        self.port = 0
        self.asked: list[tuple[str, str]] = []
        self.fails = False
        self.is_slow = asyncio.Event()
        self.goes_on = asyncio.Event()

    def shortcut(self, message: RawRequestMessage, peer: str) -> bytes | None:
        self.asked.append((message.path, peer))
        if self.fails:
            raise ValueError("at hand")
        if message.path == "/large":
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(LARGE), LARGE)
        return AT_HAND if message.path == "/hand" else None

    async def routed(self, request: web.Request) -> web.Response:
        if request.path == "/slow":
            self.is_slow.set()
            await self.goes_on.wait()
        if request.path == "/large":
            return web.Response(body=LARGE)
        return web.Response(text=f"routed {await request.text()}".strip())


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", service.routed)
    app[SHORTCUT] = service.shortcut
    app[TIMEOUTS] = Timeouts(idle=IDLE_SECONDS)
    service.runner = Runner(app, access_log=None, shutdown_timeout=1)
    await service.runner.setup()
    try:
        await web.TCPSite(service.runner, HOST, 0).start()
        service.port = service.runner.addresses[0][1]
        yield service
    finally:
        service.goes_on.set()
        await service.runner.cleanup()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[Client]:
    """A connection that waits for its first request: one that comes earlier is routed."""
    server = service.runner.server
    assert server is not None
    async with connection(service.port) as client:
        async with asyncio.timeout(10):
            while not any(one._waiter for one in server.connections):
                await asyncio.sleep(0)
        yield client


def request(path: str, *, method: str = "GET", more: str = "", body: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: desk\r\n{length}{more}\r\n{body}".encode()


async def asked(client: Client, sent: bytes) -> str:
    await client.send(sent)
    return (await client.reply()).body.decode()


async def test_each_request_of_a_connection_is_answered_where_its_answer_is(service: Service, client: Client) -> None:
    answers = [await asked(client, request(path)) for path in ("/hand", "/other", "/hand", "/hand", "/other")]
    assert answers == ["at hand", "routed", "at hand", "at hand", "routed"]
    assert service.asked[0] == ("/hand", HOST)


@pytest.mark.parametrize(
    "sent",
    [
        request("/hand", body="with a body"),
        request("/hand", more="Connection: close\r\n"),
        request("/hand").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request("/hand", more="Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    ],
)
async def test_what_is_more_than_a_request_is_routed(service: Service, client: Client, sent: bytes) -> None:
    assert (await asked(client, sent)).startswith("routed")
    assert service.asked == []


async def test_answers_stand_in_the_order_of_their_requests(service: Service, client: Client) -> None:
    for together in (["/hand", "/other", "/hand"], ["/other", "/hand", "/other"]):
        await client.send(b"".join(request(path) for path in together))
        assert [(await client.reply()).body for _ in range(3)] == [b"routed"] * 3
    await client.send(request("/slow"))
    await asyncio.wait_for(service.is_slow.wait(), 10)
    await client.send(request("/hand"))
    async with connection(service.port) as other:
        for _ in range(3):
            assert await asked(other, request("/other")) == "routed", "the request has come meanwhile"
    service.goes_on.set()
    assert [(await client.reply()).body for _ in range(2)] == [b"routed"] * 2


async def test_thousands_of_answers_at_hand_leave_nothing_behind(service: Service, client: Client) -> None:
    for _ in range(3000):
        assert await asked(client, request("/hand")) == "at hand"
    await client.send(request("/other") * 20)
    assert [(await client.reply()).body for _ in range(20)] == [b"routed"] * 20


async def test_a_request_in_two_parts_is_answered(client: Client) -> None:
    whole = request("/hand")
    await client.send(whole[:20])
    assert await asked(client, whole[20:]) == "at hand"


async def test_a_shortcut_that_fails_is_the_long_way(service: Service, client: Client) -> None:
    service.fails = True
    assert await asked(client, request("/hand")) == "routed"
    service.fails = False
    assert await asked(client, request("/hand")) == "at hand"


async def test_what_is_no_request_is_refused_after_an_answer_at_hand(service: Service, client: Client) -> None:
    assert await asked(client, request("/hand")) == "at hand"
    await client.send(b"nonsense\r\n\r\n")
    assert (await client.reply()).status == 400
    assert await client.rest() == b""
    assert service.asked == [("/hand", HOST)]


async def test_a_connection_ends_when_it_has_been_idle(service: Service, client: Client) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() < began + 2 * IDLE_SECONDS:  # it is kept as long as something comes
        assert await asked(client, request("/hand")) == "at hand"
    assert await client.rest() == b""
    assert loop.time() - began - 2 * IDLE_SECONDS > IDLE_SECONDS * 0.5


async def test_who_does_not_read_is_not_answered_without_end(service: Service, client: Client) -> None:
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 50:
            await client.send(request("/large"))
            sent += 1
            async with asyncio.timeout(1):
                while len(service.asked) < sent:
                    await asyncio.sleep(0)
    assert 1 <= len(service.asked) < sent < 50, "the kernel holds some megabytes, the service none for the next"
    assert [len((await client.reply()).body) for _ in range(sent)] == [len(LARGE)] * sent
    assert await asked(client, request("/hand")) == "at hand"


async def test_at_the_end_every_answer_ends_its_connection(service: Service, client: Client) -> None:
    assert await asked(client, request("/hand")) == "at hand"
    server = service.runner.server
    assert server is not None
    end_connections(server)
    async with connection(service.port) as later:
        for one in (client, later):
            assert await asked(one, request("/hand")) == "routed"
            assert await one.rest() == b""
    assert len(service.asked) == 1

"""Clients that keep the gateway waiting: each is given up after its time, and nobody else waits for them."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import aiohttp
import psutil
import pytest
import pytest_asyncio

from infra.local.ports import HOST
from infra.local.stack import Stack
from tests.support.desk import problem
from tests.support.processes import TestedService, running_service
from tests.support.raw_http import Upstream, connection, noting_upstream
from tests.support.tickets import eventually

HEAD, BODY, IDLE, WRITE = 1.0, 1.0, 4.0, 2.0
LONGEST = 30  # how long a test waits for what should take a second
SLOW = 1000
SIGN_IN = b'{"organization": "o", "email": "e", "password": "p"}'
GET = b"GET /livez HTTP/1.1\r\nHost: desk\r\n\r\n"
LARGE = b"GET /api/openapi.json HTTP/1.1\r\nHost: desk\r\n\r\n"
POST = (
    b"POST /api/session HTTP/1.1\r\nHost: desk\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(SIGN_IN)
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def upstream() -> AsyncIterator[Upstream]:
    async with noting_upstream() as noting:
        yield noting


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(
    stack: Stack, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TestedService]:
    log = tmp_path_factory.mktemp("slow") / "gateway.log"
    settings = dict.fromkeys(("GATEWAY_TICKETS_URL", "GATEWAY_SEARCH_URL", "GATEWAY_NOTIFIER_URL"), upstream.url)
    settings |= {
        "GATEWAY_HEAD_SECONDS": f"{HEAD}",
        "GATEWAY_BODY_SECONDS": f"{BODY}",
        "GATEWAY_IDLE_SECONDS": f"{IDLE}",
        "GATEWAY_WRITE_SECONDS": f"{WRITE}",
    }
    async with running_service(stack, "gateway", log, script=(), **settings) as service:
        yield service
        assert "Traceback" not in log.read_text()


def clock() -> float:
    return asyncio.get_running_loop().time()


async def test_a_head_that_does_not_end(gateway: TestedService) -> None:
    async with connection(gateway.port) as client:
        started = clock()
        await client.send(b"GET /livez HTTP/1.1\r\nHo")
        assert problem(await client.reply()) == (408, "request_timeout")
        assert await client.rest() == b""
        assert clock() - started > HEAD * 0.9


async def test_a_head_that_comes_drop_by_drop_has_no_more_time(gateway: TestedService) -> None:
    async with connection(gateway.port) as client:
        await client.send(b"GET /livez HTTP/1.1\r\nHost: desk\r\n")
        told = asyncio.create_task(client.reply())
        async with asyncio.timeout(LONGEST):
            while not told.done():
                with contextlib.suppress(ConnectionError):
                    await client.send(b"X: y\r\n")
                await asyncio.sleep(HEAD / 5)
        assert problem(await told) == (408, "request_timeout")


async def test_a_head_in_two_parts_is_a_head(gateway: TestedService) -> None:
    async with connection(gateway.port) as client:
        for _ in range(2):
            await client.send(GET[:10])
            await asyncio.sleep(HEAD / 5)
            await client.send(GET[10:])
            assert (await client.reply()).status == 200
        # The time of a head that has come is not that of the next.
        await asyncio.sleep(HEAD * 1.2)
        await client.send(GET)
        assert (await client.reply()).status == 200


async def test_a_connection_that_says_nothing(gateway: TestedService) -> None:
    async with connection(gateway.port) as client:
        assert await client.rest() == b""


async def test_a_connection_is_kept_between_requests_and_not_for_ever(gateway: TestedService) -> None:
    async with connection(gateway.port) as client:
        await client.send(GET)
        await client.reply()
        started = clock()
        assert await client.rest() == b""
        assert clock() - started > IDLE * 0.9


async def test_empty_lines_are_no_head(gateway: TestedService) -> None:
    async with connection(gateway.port) as client:
        await client.send(GET)
        await client.reply()
        await client.send(b"\r\n")
        assert await client.rest() == b"", "closed as any idle connection, without 408"


async def test_a_request_that_begins_when_the_idle_time_ends_is_answered(gateway: TestedService) -> None:
    async with connection(gateway.port) as client:
        await client.send(GET)
        await client.reply()
        await asyncio.sleep(IDLE - HEAD / 2)
        await client.send(GET[:10])
        await asyncio.sleep(HEAD * 0.7)  # the idle time is over, the head's is not
        await client.send(GET[10:])
        assert (await client.reply()).status == 200


async def test_a_body_that_stands_still(gateway: TestedService, upstream: Upstream) -> None:
    upstream.asked.clear()
    async with connection(gateway.port) as client:
        started = clock()
        await client.send(POST + SIGN_IN[:5])
        reply = await client.reply()
        assert problem(reply) == (408, "request_timeout")
        assert reply.headers["connection"] == "close"
        assert await client.rest() == b""
        assert clock() - started > BODY * 0.9
    assert upstream.asked == []


async def test_a_body_that_comes_slowly(gateway: TestedService, upstream: Upstream) -> None:
    async with connection(gateway.port) as client:
        await client.send(POST)
        for byte in SIGN_IN[:8]:
            await asyncio.sleep(BODY / 4)  # twice the time in all
            await client.send(bytes([byte]))
        await client.send(SIGN_IN[8:])
        assert (await client.reply()).status == 401
        assert upstream.asked[-1] == "/internal/sign-in"


async def test_chunk_extensions_are_no_progress(gateway: TestedService) -> None:
    async with connection(gateway.port) as client:
        await client.send(POST.replace(b"Content-Length: %d" % len(SIGN_IN), b"Transfer-Encoding: chunked") + b"5;a=")
        told = asyncio.create_task(client.reply())
        async with asyncio.timeout(LONGEST):
            while not told.done():
                with contextlib.suppress(ConnectionError):
                    await client.send(b"x")
                await asyncio.sleep(BODY / 5)
        assert problem(await told) == (408, "request_timeout")


async def test_an_answer_that_nobody_takes(gateway: TestedService) -> None:
    process = psutil.Process(gateway.process.pid if gateway.process else 0)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((HOST, gateway.port))
        client.sendall(LARGE * 200)
        port = client.getsockname()[1]

        def is_connected() -> bool:
            return any(one.raddr and one.raddr.port == port for one in process.net_connections())

        async def connected() -> bool:
            return await asyncio.to_thread(is_connected)

        async def gone() -> bool:
            return not await connected()

        before = process.memory_info().rss
        await eventually(connected)
        await eventually(gone)
        assert process.memory_info().rss - before < 100_000_000


async def test_an_answer_that_is_taken_slowly(gateway: TestedService) -> None:
    count = 60
    async with connection(gateway.port) as client:
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        await client.send(LARGE * count)
        sizes = set()
        for _ in range(count):
            sizes.add(len((await client.reply()).body))
            await asyncio.sleep(WRITE * 2 / count)
        assert len(sizes) == 1


async def test_a_thousand_slow_clients_keep_nobody_waiting(
    stack: Stack, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("thousand") / "gateway.log"
    urls = dict.fromkeys(("GATEWAY_TICKETS_URL", "GATEWAY_SEARCH_URL", "GATEWAY_NOTIFIER_URL"), upstream.url)
    halves = (GET[:20], POST + SIGN_IN[:5])
    patient = {"GATEWAY_HEAD_SECONDS": "60", "GATEWAY_BODY_SECONDS": "60"}
    async with (
        running_service(stack, "gateway", log, script=(), **patient, **urls) as gateway,
        contextlib.AsyncExitStack() as opened,
    ):
        clients = [await opened.enter_async_context(connection(gateway.port)) for _ in range(SLOW)]
        for number, client in enumerate(clients):
            await client.send(halves[number % 2])
        async with aiohttp.ClientSession(gateway.url, timeout=aiohttp.ClientTimeout(total=LONGEST)) as session:
            for _ in range(100):
                async with session.get("/api/openapi.json") as answer:
                    assert answer.status == 200
                    await answer.read()
        assert not any(client.reader.at_eof() for client in clients), "they are still there"
        # None of them was lost: each is answered once it goes on.
        for number, client in enumerate(clients):
            await client.send(GET[20:] if number % 2 == 0 else SIGN_IN[5:])
        statuses = [(await client.reply()).status for client in clients]
    assert set(statuses[::2]) == {200}
    assert set(statuses[1::2]) <= {401, 429}

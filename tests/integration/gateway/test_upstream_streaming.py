"""Answers that are passed through: events and files, between a client and a service that come and go."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from libs.common.connections import Runner
from libs.common.service import add_service_defaults
from services.gateway.upstreams.streaming import passed_through
from services.gateway.upstreams.upstream import Upstream
from tests.support.faulty_service import PART
from tests.support.tickets import eventually
from tests.support.upstreams import PRINCIPAL, FaultyService, faulty_services, upstream_of


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service() -> AsyncIterator[FaultyService]:
    async with faulty_services(1) as (service,):
        yield service


@contextlib.asynccontextmanager
async def passing(service: FaultyService, *, idle_seconds: float = 30, **bounds: int) -> AsyncIterator[str]:
    """The address of a server, framed as the gateway is, that passes everything through."""
    async with upstream_of(service.url, watched=False, **bounds) as upstream:
        app = web.Application()
        add_service_defaults(app)
        app.router.add_get("/{path}", handler(upstream, idle_seconds))
        runner = Runner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def handler(upstream: Upstream, idle_seconds: float) -> Any:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await passed_through(request, upstream, request.path_qs, principal=PRINCIPAL, idle_seconds=idle_seconds)

    return handle


async def no_streams(service: FaultyService) -> bool:
    return bool((await service.told())["streams"] == 0)


async def test_events_arrive_one_by_one_while_the_stream_goes_on(service: FaultyService) -> None:
    async with passing(service) as url, aiohttp.ClientSession() as session:
        headers = {"Last-Event-ID": "41", "Cookie": "secret=1", "Relaydesk-Principal": "forged"}
        async with session.get(f"{url}/events", headers=headers) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            assert answer.headers["Cache-Control"] == "private, no-store"
            assert answer.headers["ETag"] == '"7"'
            for number in range(20):
                assert await answer.content.readuntil(b"\n\n") == f"data: {number}\n\n".encode()
            told = await service.told()
        assert told["streams"] == 1
        assert told["headers"]["Last-Event-ID"] == "41"
        assert "Cookie" not in told["headers"]
        assert told["headers"]["Relaydesk-Principal"] not in {"", "forged"}
        await eventually(lambda: no_streams(service))


async def test_the_clients_stream_ends_with_the_upstreams(service: FaultyService) -> None:
    async with passing(service) as url, aiohttp.request("GET", f"{url}/events?count=3") as answer:
        assert await answer.text() == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


async def test_a_stream_that_breaks_off_does_not_look_whole(service: FaultyService) -> None:
    async with passing(service) as url, aiohttp.request("GET", f"{url}/events?count=3&cut=1") as answer:
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


async def test_a_silent_upstream_is_given_up(service: FaultyService) -> None:
    async with passing(service, idle_seconds=0.5) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/events?every=60") as answer:
            assert await answer.content.readuntil(b"\n\n") == b"data: 0\n\n"
            with pytest.raises(aiohttp.ClientError):
                await answer.content.read()
        await eventually(lambda: no_streams(service))


async def test_a_client_that_does_not_read_holds_the_upstream_back_and_is_given_up(service: FaultyService) -> None:
    parts = 4000  # 250 MiB
    before = int((await service.told())["sent"])
    memory = psutil.Process().memory_info().rss
    async with passing(service, idle_seconds=3) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            client.settimeout(60)
            client.sendall(f"GET /large?parts={parts} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            last = -1

            async def stands_still() -> bool:
                nonlocal last
                await asyncio.sleep(0.3)
                stood, last = last, int((await service.told())["sent"])
                return last > before and stood == last

            await eventually(stands_still)
            assert last - before < parts * len(PART) / 4
            assert psutil.Process().memory_info().rss - memory < 50 * 1024 * 1024

            await eventually(lambda: no_streams(service))
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while part := client.recv(1 << 20):
                    received += len(part)
            assert received < parts * len(PART) / 4


async def test_a_large_file_is_passed_through_whole(service: FaultyService) -> None:
    parts = 1600  # 100 MiB
    memory = psutil.Process().memory_info().rss
    async with passing(service, answer_bytes=65536) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/large?parts={parts}&told=1") as answer:
            assert answer.content_length == parts * len(PART)
            received = 0
            async for part in answer.content.iter_any():
                received += len(part)
        assert received == parts * len(PART)
    assert psutil.Process().memory_info().rss - memory < 50 * 1024 * 1024


async def test_streams_are_bounded_and_errors_come_as_problems(service: FaultyService) -> None:
    async with passing(service, streams=1) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/events") as answer:
            await answer.content.readuntil(b"\n\n")
            async with session.get(f"{url}/events") as refused:
                assert (refused.status, (await refused.json())["code"]) == (503, "service_unavailable")
                assert "Retry-After" in refused.headers
        await eventually(lambda: no_streams(service))

        async def free_again() -> bool:
            async with session.get(f"{url}/events?count=1") as again:
                return again.status == 200

        await eventually(free_again)
        async with session.get(f"{url}/drop") as dropped:
            assert (dropped.status, (await dropped.json())["code"]) == (503, "service_unavailable")
        async with session.get(f"{url}/later") as later:
            assert (later.status, later.headers["Retry-After"]) == (503, "1")


async def test_a_stream_lasts_beyond_the_deadline_of_calls(service: FaultyService) -> None:
    async with upstream_of(service.url, seconds=0.5, watched=False) as upstream:
        asked = upstream.stream("GET", "/events?count=30&every=0.05", principal=PRINCIPAL, idle_seconds=30)
        async with asked as answer:
            assert (await answer.read()).endswith(b"data: 29\n\n")

"""A gateway before two tickets services that are killed and replaced under load."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio

from infra.local.stack import Stack
from tests.support.clients import Tenant, provision
from tests.support.processes import TestedService, running_service
from tests.support.tickets import eventually

PATIENCE_SECONDS = 90.0


class Desk:
    """`seen` counts the answers of all clients by status."""

    def __init__(self, gateway: TestedService, tickets: list[TestedService], tenant: Tenant) -> None:
        self.gateway = gateway
        self.tickets = tickets
        self.tenant = tenant
        self.seen: Counter[int] = Counter()
        self.going = True

    async def read(self) -> None:
        """Something that is never cached, again and again."""
        async with aiohttp.ClientSession(self.gateway.url, headers=self.tenant.headers) as session:
            while self.going:
                async with session.get("/api/audit?limit=1") as answer:
                    await answer.read()
                self.seen[answer.status] += 1

    async def write(self) -> None:
        async with aiohttp.ClientSession(self.gateway.url, headers=self.tenant.headers) as session:
            while self.going:
                async with session.post("/api/tickets", json={"title": "One of many"}) as answer:
                    await answer.read()
                self.seen[answer.status] += 1

    async def more(self, requests: int = 100) -> None:
        wanted = self.seen.total() + requests

        async def answered() -> bool:
            return self.seen.total() >= wanted

        await eventually(answered, seconds=PATIENCE_SECONDS)

    async def logged(self, event: str, times: int = 1) -> None:
        async def found() -> bool:
            return self.gateway.log.read_text().count(f'"event":"{event}"') >= times

        await eventually(found, seconds=PATIENCE_SECONDS)


@pytest_asyncio.fixture(loop_scope="session")
async def desk(stack: Stack, topic: str, tmp_path: Path) -> AsyncIterator[Desk]:
    tickets = {"TICKETS_TOPIC_PARTITIONS": "3", "DRAIN_SECONDS": "4"}
    async with (
        running_service(stack, "tickets", tmp_path / "tickets-1.log", script=(), **tickets) as first,
        running_service(stack, "tickets", tmp_path / "tickets-2.log", script=(), **tickets) as second,
    ):
        tenant = await provision(stack)
        settings = {"GATEWAY_TICKETS_URL": f"{first.url},{second.url}", "GATEWAY_LIMIT_CREDENTIAL": "0"}
        async with running_service(stack, "gateway", tmp_path / "gateway.log", script=(), **settings) as gateway:
            yield Desk(gateway, [first, second], tenant)


async def test_reads_go_on_while_a_tickets_service_is_killed_and_comes_back(desk: Desk) -> None:
    clients = [asyncio.create_task(desk.read()) for _ in range(4)]
    try:
        await desk.more()
        process = desk.tickets[0].process
        assert process is not None
        desk.tickets[0].kill(signal.SIGKILL)
        await process.wait()
        await desk.logged("instance_left_out")
        await desk.more()
        await desk.tickets[0].start()
        await desk.logged("instance_back")
        await desk.more()
    finally:
        desk.going = False
        await asyncio.gather(*clients)
    assert set(desk.seen) == {200}


async def test_writes_go_on_while_the_tickets_services_are_replaced_one_by_one(desk: Desk) -> None:
    clients = [asyncio.create_task(desk.write()) for _ in range(4)]
    try:
        await desk.more()
        for number, service in enumerate(desk.tickets, start=1):
            process = service.process
            assert process is not None
            service.kill(signal.SIGTERM)
            await desk.logged("instance_draining", times=number)
            assert await process.wait() == 0
            await service.start()
            await desk.logged("instance_back", times=number)
            await desk.more()
    finally:
        desk.going = False
        await asyncio.gather(*clients)
    assert set(desk.seen) == {201}

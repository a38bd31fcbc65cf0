"""A rolling restart under load: nobody who follows HTTP sees an error, and nothing is lost or done twice."""

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest_asyncio

from infra.local.ports import HOST
from infra.local.stack import Stack
from tests.support.clients import Tenant, provision
from tests.support.processes import TestedService, running_service
from tests.support.tickets import eventually

CLIENTS = 12
DRAIN = "3"
COUNT_TICKETS = "SELECT count(*) FROM tickets t JOIN organizations o ON o.id = t.organization_id WHERE o.slug = $1"


class ClosedError(Exception):
    """The server closed a connection before a byte of the answer."""


class Connection:
    """A kept-alive connection of one client to one instance."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.used = False
        self.open = True

    @classmethod
    async def to(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection(HOST, port))

    async def ask(self, request: bytes) -> int:
        """The answer's status, the answer read to its end."""
        try:
            self._writer.write(request)
            await self._writer.drain()
            first = await self._reader.readexactly(1)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ClosedError from error
        head = (first + await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        lines = dict(line.split(": ", 1) for line in head.strip().split("\r\n")[1:])
        await self._reader.readexactly(int(lines.get("content-length", 0)))
        self.used = True
        self.open = lines.get("connection") != "close"
        return int(head.split()[1])

    def close(self) -> None:
        self._writer.close()


class Load:
    """Clients behind a balancer: round-robin over the gateways that say they are ready, a connection kept to each."""

    def __init__(self, tenant: Tenant, gateways: list[TestedService]) -> None:
        self.gateways = gateways
        self.seen: Counter[str] = Counter()
        self.created = 0
        self._tenant = tenant
        self._ready = list(gateways)
        self._turn = itertools.count()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._client()) for _ in range(CLIENTS)]
        tasks.append(asyncio.create_task(self._probe()))
        self._going = True
        try:
            yield
        finally:
            self._going = False
            await asyncio.wait_for(asyncio.gather(*tasks), 60)

    async def answered(self, more: int) -> None:
        """Wait for so many more answers."""
        enough = self.seen["answered"] + more

        async def there() -> bool:
            return self.seen["answered"] >= enough

        await eventually(there, seconds=60)

    async def _probe(self) -> None:
        while self._going:
            self._ready = [gateway for gateway in self.gateways if await is_ready(gateway)]
            await asyncio.sleep(0.05)

    async def _client(self) -> None:
        kept: dict[int, Connection] = {}
        for number in itertools.count():
            if not self._going:
                break
            method, target, body = (
                ("POST", "/api/tickets", json.dumps({"title": "Rolling"}).encode())
                if number % 4 == 0
                else ("GET", f"/api/tickets?limit={1 + number % 50}", b"")
            )
            await self._ask(kept, method, self._request(method, target, body))
        for connection in kept.values():
            connection.close()

    def _request(self, method: str, target: str, body: bytes) -> bytes:
        head = f"{method} {target} HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer {self._tenant.key}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body

    async def _ask(self, kept: dict[int, Connection], method: str, request: bytes) -> None:
        """One request. What RFC 9110 lets a client send again is sent again, and counted."""
        while True:
            ready = self._ready
            port = ready[next(self._turn) % len(ready)].port
            connection = kept.pop(port, None)
            try:
                connection = connection or await Connection.to(port)
            except ConnectionError:
                self.seen["refused"] += 1
                continue
            try:
                status = await connection.ask(request)
            except ClosedError:
                connection.close()
                self.seen[f"closed, {'kept' if connection.used else 'new'} connection, {method}"] += 1
                if method == "POST":
                    return
                continue
            except (asyncio.IncompleteReadError, ConnectionError):
                self.seen["broken off"] += 1
                return
            self.seen["answered"] += 1
            if status >= 400:
                self.seen[f"status {status}"] += 1
            self.created += status == 201
            if connection.open:
                kept[port] = connection
            else:
                self.seen["asked to close"] += 1
                connection.close()
            return

    def failures(self) -> dict[str, int]:
        """All that is not an answer as it should be, or the polite end of a connection."""
        return {what: count for what, count in self.seen.items() if what not in {"answered", "asked to close"}}


async def is_ready(service: TestedService) -> bool:
    with contextlib.suppress(OSError, ClosedError):
        connection = await Connection.to(service.port)
        try:
            return await connection.ask(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") == 200
        finally:
            connection.close()
    return False


@pytest_asyncio.fixture(loop_scope="session")
async def run(stack: Stack, topic: str, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[TestedService]]]:
    """Starts a service that drains for some seconds; all are stopped in the end."""
    async with contextlib.AsyncExitStack() as running:
        numbers = itertools.count()

        async def start(name: str, **environment: str) -> TestedService:
            log = tmp_path / f"{name}-{next(numbers)}.log"
            settings = {"DRAIN_SECONDS": DRAIN, **environment}
            return await running.enter_async_context(running_service(stack, name, log, script=(), **settings))

        yield start


async def created(stack: Stack, tenant: Tenant) -> int:
    connection = await asyncpg.connect(stack.primary.url("tickets", superuser=True))
    try:
        return int(await connection.fetchval(COUNT_TICKETS, tenant.slug))
    finally:
        await connection.close()


async def test_gateways_are_replaced_under_load_and_nobody_notices(
    stack: Stack, run: Callable[..., Awaitable[TestedService]]
) -> None:
    tickets = await run("tickets", TICKETS_TOPIC_PARTITIONS="3", DRAIN_SECONDS="0")
    workers = {"GATEWAY_WORKERS": "2"}
    old = [await run("gateway", GATEWAY_TICKETS_URL=tickets.url, **workers, **metrics(n)) for n in range(2)]
    tenant = await provision(stack)
    load = Load(tenant, old)
    async with load.running():
        await load.answered(200)
        for number, going in enumerate(old, start=2):
            coming = await run("gateway", GATEWAY_TICKETS_URL=tickets.url, **workers, **metrics(number))
            load.gateways = [*load.gateways, coming]
            await load.answered(100)
            await going.stop()  # SIGTERM, and it has ended
            assert going.process is not None
            assert await going.process.wait() == 0
            load.gateways = [gateway for gateway in load.gateways if gateway is not going]
            await load.answered(100)
    assert load.failures() == {}
    assert load.seen["asked to close"] > 0, "or no connection was kept"
    assert await created(stack, tenant) == load.created > 0


def metrics(number: int) -> dict[str, str]:
    return {"GATEWAY_METRICS_PORT": str(19_000 + 10 * number)}


async def test_tickets_instances_are_replaced_under_load_and_nobody_notices(
    stack: Stack, run: Callable[..., Awaitable[TestedService]]
) -> None:
    instances = [await run("tickets", TICKETS_TOPIC_PARTITIONS="3") for _ in range(2)]
    gateway = await run("gateway", GATEWAY_TICKETS_URL=",".join(instance.url for instance in instances))
    tenant = await provision(stack)
    load = Load(tenant, [gateway])
    async with load.running():
        await load.answered(200)
        for instance in instances:
            await instance.stop()
            assert instance.process is not None
            assert await instance.process.wait() == 0
            await load.answered(100)
            await instance.start()
            back = f'"instance":"{HOST}:{instance.port}","event":"instance_back"'
            await eventually(lambda back=back: _logged(gateway, back), seconds=60)
            await load.answered(100)
    assert load.failures() == {}
    assert await created(stack, tenant) == load.created > 0


async def _logged(service: TestedService, text: str) -> bool:
    return text in service.log.read_text()

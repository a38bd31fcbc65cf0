"""Two gateways, the tickets and the search service as processes, two organizations, and HTTP to them."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from tests.support.clients import Tenant, provision
from tests.support.processes import TestedService, running_service


class Reply(msgspec.Struct, frozen=True):
    """An answer. `headers` have lower-case names; of a name that comes twice the last value."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Desk:
    """What the tests of the gateway talk to. `logs` are those of every process."""

    def __init__(
        self, gateways: list[TestedService], tickets: TestedService, tenants: list[Tenant], logs: list[Path]
    ) -> None:
        self.gateways = gateways
        self.tickets = tickets
        self.acme, self.other = tenants
        self.logs = logs

    def all_logs(self) -> str:
        return "".join(log.read_text(errors="replace") for log in self.logs if log.exists())

    async def ask(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: Mapping[str, str | bytes | None] | None = None,
        *,
        who: Tenant | None = None,
        gateway: int = 0,
        chunked: bool = False,
    ) -> Reply:
        """One request, as it stands, on a connection of its own. `body` is JSON unless it is bytes.

        `headers` None leaves a header out that would be sent otherwise.
        """
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent: dict[str, str | bytes | None] = {"Host": "desk", "Connection": "close"}
        if who is not None:
            sent["Authorization"] = f"Bearer {who.key}"
        if body is not None:
            sent["Content-Type"] = "application/json"
            sent |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(content))}
        sent |= headers or {}
        head = f"{method} ".encode() + target.encode("utf-8", "surrogateescape") + b" HTTP/1.1\r\n"
        for name, value in sent.items():
            if value is not None:
                head += name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
        if chunked:
            content = f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"
        return await exchange(self.gateways[gateway].port, head + b"\r\n" + content)


async def exchange(port: int, request: bytes) -> Reply:
    """Send bytes and read the answer to its end, however much of the request the server has read by then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(60):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
    finally:
        writer.close()
    return Reply(int(status.split()[1]), headers, body)


def problem(reply: Reply) -> tuple[int, str]:
    """The status and code of an answer that must be a complete RFC 9457 problem."""
    assert reply.headers.get("content-type") == "application/problem+json", reply
    told = reply.json()
    assert told["status"] == reply.status
    assert told["type"] == f"urn:relaydesk:problem:{told['code']}"
    assert told["title"]
    assert "Traceback" not in reply.body.decode()
    return reply.status, told["code"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def desk(stack: Stack, topic: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    """Whoever stops a server or one of these processes starts it again before the test ends.

    A module's and no session's: its search service shares the consumer group of every other, and would take events
    from the services of later tests.
    """
    folder = tmp_path_factory.mktemp("desk")
    logs = [folder / f"{name}.log" for name in ("tickets", "search", "gateway-1", "gateway-2")]
    async with (
        running_service(stack, "tickets", logs[0], TICKETS_TOPIC_PARTITIONS="3", LOG_LEVEL="debug") as tickets,
        running_service(stack, "search", logs[1], SEARCH_TICKETS_URL=tickets.url, LOG_LEVEL="debug") as search,
    ):
        urls = {"GATEWAY_TICKETS_URL": tickets.url, "GATEWAY_SEARCH_URL": search.url, "LOG_LEVEL": "debug"}
        async with (
            running_service(stack, "gateway", logs[2], script=(), **urls) as first,
            running_service(stack, "gateway", logs[3], script=(), **urls) as second,
        ):
            tenants = [await provision(stack, agents=2) for _ in range(2)]
            yield Desk([first, second], tickets, tenants, logs)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def database(stack: Stack, desk: Desk) -> AsyncIterator[asyncpg.Pool]:
    """The tickets database as superuser, to look at what stands in it."""
    async with asyncpg.create_pool(stack.primary.url("tickets", superuser=True), min_size=0, max_size=2) as pool:
        yield pool

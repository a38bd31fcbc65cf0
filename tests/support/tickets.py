"""The tickets service and its database, as its neighbours and its operator meet it."""

import asyncio
import contextlib
import dataclasses
import json
import sys
import urllib.parse
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from infra.local.ports import HOST, free_ports
from infra.local.process import Command
from infra.local.stack import Stack
from libs.common import settings
from libs.common.consistency import HEADER as CONSISTENCY_HEADER
from libs.common.events import TOPIC
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Principal, Signer
from libs.common.migrations import migrate
from libs.common.models import Role
from services.tickets.paths import MIGRATIONS
from services.tickets.settings import Settings
from tests.support.clients import read_topic
from tests.support.processes import TestedService
from tests.support.stack import PARTITIONS

INSERT_ORGANIZATION = "INSERT INTO organizations (id, slug, name) VALUES ($1, $2, 'Test')"
INSERT_USER = "INSERT INTO users (organization_id, id, email, name, role) VALUES ($1, $2, $3, 'Test', $4)"


@dataclasses.dataclass(frozen=True)
class TicketsDatabase:
    """A migrated tickets database of its own in the stack's cluster; `superuser` sees past row-level security."""

    name: str
    environment: dict[str, str]
    superuser: asyncpg.Pool

    def settings(self, **changes: str) -> Settings:
        return settings.load(Settings, self.environment | changes, prefix="TICKETS_")

    async def organization(self, *roles: Role) -> list[Principal]:
        """Create an organization and return its users: an admin unless told otherwise."""
        organization_id = uuid.uuid4()
        await self.superuser.execute(INSERT_ORGANIZATION, organization_id, f"org-{organization_id.hex}")
        people = []
        for role in roles or (Role.ADMIN,):
            user_id = uuid.uuid4()
            await self.superuser.execute(INSERT_USER, organization_id, user_id, f"{user_id}@example.com", role)
            people.append(
                Principal(
                    organization_id=organization_id,
                    user_id=user_id,
                    name="Test",
                    role=role,
                    credential="session",
                    credential_id=uuid.uuid4().hex,
                )
            )
        return people

    async def counts(self) -> dict[str, int]:
        """The number of rows of every table that a request can write."""
        tables = (
            *("organizations", "users", "credentials", "api_keys", "tickets", "comments", "outbox"),
            *("ticket_history", "audit_log", "idempotency_records"),
        )
        counts = {name: f"SELECT count(*) FROM {name}" for name in tables}  # noqa: S608
        counted = {name: await self.superuser.fetchval(query) for name, query in counts.items()}
        numbers = "SELECT sum(last_ticket_number)::bigint FROM organizations"
        return counted | {"numbers": await self.superuser.fetchval(numbers)}


@contextlib.asynccontextmanager
async def tickets_database(stack: Stack) -> AsyncIterator[TicketsDatabase]:
    name = f"tickets_{uuid.uuid4().hex[:8]}"
    url = await stack.primary.create_database(name)
    await migrate(url, MIGRATIONS)
    environment = {
        **stack.environment("tickets"),
        "TICKETS_DATABASE_URL": url,
        "TICKETS_REPLICA_URLS": ",".join(with_database(replica, name) for replica in stack.replica_urls),
        "TICKETS_TOPIC_PARTITIONS": str(PARTITIONS),
        "TICKETS_RELAY_EMBEDDED": "false",
        "TICKETS_POOL_MINIMUM": "1",
        "TICKETS_POOL_MAXIMUM": "10",
    }
    del environment["TICKETS_HOST"], environment["TICKETS_PORT"]  # every process has its own
    if reports := environment.get("TICKETS_ANALYTICS_URL"):
        environment["TICKETS_ANALYTICS_URL"] = with_database(reports, name)
    pool = await asyncpg.create_pool(stack.primary.url(name, superuser=True), min_size=0, max_size=5)
    try:
        yield TicketsDatabase(name, environment, pool)
    finally:
        pool.terminate()


def with_database(url: str, name: str) -> str:
    return urllib.parse.urlsplit(url)._replace(path=f"/{name}").geturl()


class TicketsClient:
    """HTTP to the tickets service as the gateway speaks it, for one user; sends the newest token it was told."""

    def __init__(self, session: aiohttp.ClientSession, url: str, signer: Signer, principal: Principal) -> None:
        self._session = session
        self._url = url
        self._headers = {PRINCIPAL_HEADER: signer.principal_token(principal, "tickets")}
        self._token = ""
        self.principal = principal

    async def request(self, method: str, path: str, **more: Any) -> "Answer":
        newest = {CONSISTENCY_HEADER: self._token} if self._token else {}
        headers = self._headers | newest | more.pop("headers", {})
        async with self._session.request(method, self._url + path, headers=headers, **more) as response:
            raw = await response.read()
            body = json.loads(raw) if raw else None
            self._token = max(self._token, response.headers.get(CONSISTENCY_HEADER, ""))  # tokens order as positions
            return Answer(response.status, response.headers, body, raw)

    async def create(self, title: str = "A ticket", **more: Any) -> "Answer":
        answer = await self.request("POST", "/api/tickets", json={"title": title, **more})
        assert answer.status == 201, answer
        return answer

    async def update(self, ticket_id: str, version: int, **changes: Any) -> "Answer":
        headers = {"If-Match": f'"{version}"'}
        return await self.request("PATCH", f"/api/tickets/{ticket_id}", json=changes, headers=headers)


class Answer:
    """A response that has been read; `raw` are the bytes of its body."""

    def __init__(self, status: int, headers: Any, body: Any, raw: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.raw = raw

    @property
    def token(self) -> str:
        return str(self.headers[CONSISTENCY_HEADER])

    @property
    def code(self) -> str:
        return str(self.body["code"])

    def __repr__(self) -> str:
        return f"{self.status} {self.body}"


class RelayProcess(TestedService):
    """`python -m services.tickets relay`."""

    def command(self) -> Command:
        command = super().command()
        return dataclasses.replace(command, argv=[sys.executable, "-m", "services.tickets", "relay"])


@contextlib.asynccontextmanager
async def running_relay(database: TicketsDatabase, log: Path, **environment: str) -> AsyncIterator[RelayProcess]:
    (port,) = free_ports(1)
    variables = database.environment | {"TICKETS_HOST": HOST, "TICKETS_PORT": str(port)} | environment
    relay = RelayProcess("tickets", port, "TICKETS_PORT", environment=lambda: variables, log=log)
    relay.url = f"http://{HOST}:{port}"
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


async def gauge(service: TestedService, name: str) -> float:
    """One sample of the service's /metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"{service.url}/metrics") as answer:
        for line in (await answer.text()).splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise AssertionError(name)


async def published(stack: Stack, ticket_ids: Sequence[str]) -> dict[str, list[int]]:
    """The versions of the tickets in the topic, in the order in which they stand there."""
    versions: dict[str, list[int]] = {ticket_id: [] for ticket_id in ticket_ids}
    for message in await read_topic(stack, TOPIC):
        key = (message.key or b"").decode()
        if key in versions:
            versions[key].append(int(dict(message.headers)["ce_ticketversion"]))
    return versions


def first_times(versions: Sequence[int]) -> list[int]:
    """The versions without replays."""
    return list(dict.fromkeys(versions))


@contextlib.asynccontextmanager
async def locked(database: TicketsDatabase, query: str, *arguments: Any) -> AsyncIterator[None]:
    """Hold the rows of `query` (which says FOR UPDATE), or whatever else it locks, while the block lasts."""
    async with database.superuser.acquire() as connection, connection.transaction():
        await connection.execute(query, *arguments)
        yield


async def waiting_for_locks(database: TicketsDatabase) -> int:
    """How many of the database's sessions wait for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return int(await database.superuser.fetchval(waiting))


async def eventually(condition: Any, *, seconds: float = 30.0) -> None:
    """Wait until the coroutine function `condition` returns something true."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)

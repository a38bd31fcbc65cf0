from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.identity import Principal, Signer
from services.tickets.database import Database
from tests.support.processes import TestedService, running_service
from tests.support.tickets import TicketsClient, TicketsDatabase, tickets_database


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def desk(stack: Stack) -> AsyncIterator[TicketsDatabase]:
    """A tickets database without a relay, so its outbox shows what was written."""
    async with tickets_database(stack) as database:
        yield database


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def service(
    stack: Stack, desk: TicketsDatabase, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TestedService]:
    log = tmp_path_factory.mktemp("tickets") / "tickets.log"
    async with running_service(stack, "tickets", log, script=(), **desk.environment) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client_of(stack: Stack, service: TestedService) -> AsyncIterator[Callable[[Principal], TicketsClient]]:
    """Makes a client for a user."""
    signer = Signer(stack.credentials.signing_key("gateway"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield lambda principal: TicketsClient(session, service.url, signer, principal)


@pytest_asyncio.fixture(loop_scope="session")
async def client(desk: TicketsDatabase, client_of: Callable[[Principal], TicketsClient]) -> TicketsClient:
    """The admin of a fresh organization."""
    (principal,) = await desk.organization()
    return client_of(principal)


@pytest_asyncio.fixture(loop_scope="session")
async def outbox(stack: Stack) -> AsyncIterator[TicketsDatabase]:
    """A database of the test's own: its outbox is empty, and no relay has leases in it."""
    async with tickets_database(stack) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def database(outbox: TicketsDatabase) -> AsyncIterator[Database]:
    """The test's own database as the service opens it."""
    async with Database.open(outbox.settings()) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def principal(outbox: TicketsDatabase) -> Principal:
    """The admin of an organization in the test's own database."""
    (made,) = await outbox.organization()
    return made

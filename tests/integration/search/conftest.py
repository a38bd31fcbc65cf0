from collections.abc import AsyncIterator

import aiohttp
import asyncpg
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.identity import Signer
from libs.common.migrations import migrate
from libs.common.postgres import create_pool
from services.search.app import APP_ROLE, INDEXER_ROLE
from services.search.documents import Documents
from services.search.paths import MIGRATIONS
from services.search.tickets_client import TicketsClient
from tests.support.indexing import TicketsOwner, serving_tickets


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def database(stack: Stack) -> str:
    """The address of the stack's search database, migrated by its owner, who is no superuser."""
    await migrate(stack.search_database_url, MIGRATIONS)
    return stack.search_database_url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def readers(database: str) -> AsyncIterator[asyncpg.Pool]:
    async with await create_pool(database, role=APP_ROLE, service="test", minimum=1, maximum=2) as pool:
        yield pool


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def writers(database: str) -> AsyncIterator[asyncpg.Pool]:
    async with await create_pool(database, role=INDEXER_ROLE, service="test", minimum=1, maximum=2) as pool:
        yield pool


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def owner(stack: Stack) -> AsyncIterator[TicketsOwner]:
    """The tickets service that the index fetches from."""
    async with serving_tickets(stack.credentials.trusted_keys()) as serving:
        yield serving


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def documents(stack: Stack, writers: asyncpg.Pool, owner: TicketsOwner) -> AsyncIterator[Documents]:
    async with aiohttp.ClientSession() as session:
        signer = Signer(stack.credentials.signing_key("search"))
        yield Documents(writers, TicketsClient(session, owner.url, signer))

"""A tenant's transaction on a connection of a pool."""

import contextlib
import uuid
from collections.abc import AsyncIterator

import asyncpg

from libs.common.postgres import ACQUIRE_SECONDS, transaction_on


@contextlib.asynccontextmanager
async def transaction(
    pool: asyncpg.Pool, *, organization_id: uuid.UUID | None, read_only: bool = False
) -> AsyncIterator[asyncpg.Connection]:
    """See `transaction_on`."""
    async with (
        pool.acquire(timeout=ACQUIRE_SECONDS) as connection,
        transaction_on(connection, organization_id=organization_id, read_only=read_only),
    ):
        yield connection

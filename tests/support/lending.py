"""A lending of real connections."""

import contextlib
from collections.abc import AsyncIterator

from infra.local.stack import Stack
from libs.common.lending import Lending
from libs.common.postgres import create_pool

PID = "SELECT pg_backend_pid()"
ROLE = "postgres"


@contextlib.asynccontextmanager
async def lent_by(stack: Stack, *, maximum: int) -> AsyncIterator[Lending]:
    """A lending of a pool as the services have it, without any connection so far."""
    url = stack.primary.url(superuser=True)
    connections = Lending(await create_pool(url, role=ROLE, service="test", minimum=0, maximum=maximum))
    try:
        yield connections
    finally:
        await connections.close()


async def pid_of(connections: Lending) -> int:
    async with connections.lend() as connection:
        return int(await connection.fetchval(PID))

"""Fair shares of the primary's connections: no organization holds so many that others must wait for it.

Writes of one organization may wait for one another (ticket numbers have no gaps, a ticket has one version after the
other). Those that wait hold a connection each, and without a limit a burst of one organization would hold them all.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator


class Shares:
    """Each organization may hold `most` at a time; the others of it wait their turn, first come, first served."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[uuid.UUID, tuple[asyncio.Semaphore, int]] = {}

    @contextlib.asynccontextmanager
    async def one_of(self, organization_id: uuid.UUID, *, seconds: float) -> AsyncIterator[None]:
        """Hold one of the organization's share while the block lasts.

        Raises:
            TimeoutError: when none became free within `seconds`.
        """
        semaphore, users = self._held.get(organization_id) or (asyncio.Semaphore(self._most), 0)
        self._held[organization_id] = (semaphore, users + 1)
        try:
            async with asyncio.timeout(seconds):
                await semaphore.acquire()
            try:
                yield
            finally:
                semaphore.release()
        finally:
            _semaphore, users = self._held[organization_id]
            if users == 1:
                del self._held[organization_id]
            else:
                self._held[organization_id] = (semaphore, users - 1)

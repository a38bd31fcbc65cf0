"""Connections of a pool, handed from one transaction to the next.

asyncpg takes a connection back in a task of its own and gives it out under a timer: 46 of the 183 µs that a read by
primary key costs. Here a connection that is given back is at hand for the next who asks. It returns to the pool when
somebody waits for one there, when it is not as it was lent, and after a second at most, so the pool's own rules (idle
time, uses, expiry) hold.
"""

import asyncio
import contextlib
from collections.abc import Awaitable

import asyncpg

from libs.common.postgres import ACQUIRE_SECONDS, UNAVAILABLE_ERRORS, is_open

ROUND_SECONDS = 1.0
_CLOSE_SECONDS = 5.0


class Lending:
    """Lends the connections of a pool that nobody else takes any from."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.lent: set[asyncpg.Connection] = set()
        self._at_hand: list[asyncpg.Connection] = []
        self._waiting = 0
        self.round = 0
        self._end_of_round: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def lend(self, seconds: float = ACQUIRE_SECONDS) -> "_Loan":
        """A connection, for as long as an `async with` block lasts.

        Raises:
            TimeoutError: when none is free within that many seconds.
        """
        return _Loan(self, seconds)

    def open(self, count: int) -> None:
        """Begin to connect until `count` connections are open; what fails is left to the next who asks for one."""
        self._begin(self._open(count))

    async def renew(self) -> None:
        """Let no connection be used again that was made before."""
        await self.pool.expire_connections()
        self._next_round()

    async def close(self) -> None:
        """Close the pool, within 5 s, whoever still has a connection of it."""
        self._next_round()
        try:
            await asyncio.wait_for(self.pool.close(), _CLOSE_SECONDS)
        except TimeoutError:
            self.pool.terminate()
        for task in self._tasks:  # some may still wait for a server that does not answer
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def take(self, seconds: float) -> asyncpg.Connection:
        """What `lend` gives; whoever takes it gives it back."""
        while self._at_hand:
            connection = self._at_hand.pop()
            if _is_intact(connection):
                self.lent.add(connection)
                return connection
            self._return(connection)
        self._waiting += 1
        try:
            connection = await self.pool.acquire(timeout=seconds)
        finally:
            self._waiting -= 1
        self.lent.add(connection)
        return connection

    async def give_back(self, connection: asyncpg.Connection, *, taken_in: int, well: bool) -> None:
        """Keep it at hand if all went `well` with it since `taken_in`, the round in which it was asked for."""
        self.lent.discard(connection)
        if well and taken_in == self.round and not self._waiting and _is_intact(connection):
            self._keep_at_hand(connection)
        else:
            await self.pool.release(connection)

    def _keep_at_hand(self, connection: asyncpg.Connection) -> None:
        self._at_hand.append(connection)
        if self._end_of_round is None:
            self._end_of_round = asyncio.get_running_loop().call_later(ROUND_SECONDS, self._next_round)

    def _next_round(self) -> None:
        """Return what is at hand now, and what is lent when it is given back."""
        self.round += 1
        if self._end_of_round is not None:
            self._end_of_round.cancel()
            self._end_of_round = None
        while self._at_hand:
            self._return(self._at_hand.pop())

    async def _open(self, count: int) -> None:
        async with contextlib.AsyncExitStack() as held:
            while self.pool.get_size() < count:
                await held.enter_async_context(self.pool.acquire(timeout=ACQUIRE_SECONDS))

    def _return(self, connection: asyncpg.Connection) -> None:
        self._begin(self.pool.release(connection))

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(_unless_away(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Loan:
    """A connection for a block; a generator would cost a read 2 %."""

    __slots__ = ("_connection", "_lending", "_seconds", "_taken_in")

    def __init__(self, lending: Lending, seconds: float) -> None:
        self._lending = lending
        self._seconds = seconds
        self._taken_in = lending.round  # before waiting: what is connecting at a renewal is of the old ones
        self._connection: asyncpg.Connection

    async def __aenter__(self) -> asyncpg.Connection:
        self._connection = await self._lending.take(self._seconds)
        return self._connection

    async def __aexit__(self, kind: object, _error: object, _traceback: object) -> None:
        await self._lending.give_back(self._connection, taken_in=self._taken_in, well=kind is None)


async def _unless_away(work: Awaitable[None]) -> None:
    with contextlib.suppress(asyncpg.PostgresError, *UNAVAILABLE_ERRORS):  # whoever needs the server is told
        await work


def _is_intact(connection: asyncpg.Connection) -> bool:
    return is_open(connection) and not connection.is_in_transaction()

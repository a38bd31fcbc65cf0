"""MGETs of many readers in one: what is asked for while one is under way goes together in the next.

Under load a read costs Redis, and the client far more so, a part of a round trip; without load nobody waits.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple

from redis.asyncio import Redis

_KEYS = 1000  # in one command: Redis does nothing else meanwhile


class _Asked(NamedTuple):
    keys: list[str]
    answer: "asyncio.Future[list[Any]]"


class JoinedReads:
    """Reads keys of one Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[_Asked] = []
        self._reading: asyncio.Task[None] | None = None

    async def mget(self, keys: Iterable[str]) -> list[Any]:
        """The values (bytes) of `keys`, read at one moment after the call; None for those that are missing.

        Raises:
            RedisError, OSError, TimeoutError: when Redis does not answer, also one who asked before.
        """
        asked = _Asked(list(keys), asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return await asked.answer

    async def _read(self) -> None:
        taken: list[_Asked] = []
        try:
            while self._waiting:
                taken = self._take()
                values = await self._redis.mget([key for asked in taken for key in asked.keys])
                place = 0
                for asked in taken:
                    if not asked.answer.done():  # else whoever asked has gone
                        asked.answer.set_result(values[place : place + len(asked.keys)])
                    place += len(asked.keys)
        except BaseException as error:
            # Who waits would only learn the same a time-out later.
            told = error if isinstance(error, Exception) else ConnectionError("the reads were given up")
            for asked in [*taken, *self._waiting]:
                if not asked.answer.done():
                    asked.answer.set_exception(told)
            self._waiting.clear()
            if not isinstance(error, Exception):
                raise
        finally:
            self._reading = None

    def _take(self) -> list[_Asked]:
        """Those who have waited longest, as many as fit into one command, or one alone."""
        count, keys = 0, 0
        for asked in self._waiting:
            keys += len(asked.keys)
            if count and keys > _KEYS:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

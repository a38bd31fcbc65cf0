"""Revoked credentials: their sockets are closed, their realtime tokens are refused."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from libs.common.identity import REALTIME_SECONDS
from libs.common.revocations import FIELD, STREAM

# A token may be issued a moment after its credential was revoked, and clocks differ.
REMEMBERED_SECONDS = REALTIME_SECONDS + 60
_READ_ENTRIES = 1000
_BLOCK_MS = 500
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
log = structlog.get_logger()

OnRevoked = Callable[[str], Awaitable[None]]


class Revocations:
    """What the stream `revocations` tells, for as long as a realtime token could outlive its credential."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._until: dict[str, float] = {}
        self._current = asyncio.Event()

    async def wait_until_current(self, seconds: float) -> None:
        """Return when the stream has been read to its end and is being followed.

        Raises:
            TimeoutError: when it is not within `seconds`.
        """
        async with asyncio.timeout(seconds):
            await self._current.wait()

    def includes(self, credential_id: str) -> bool:
        """Whether the credential was revoked within the life of a realtime token."""
        return credential_id in self._until

    async def run(self, on_revoked: OnRevoked) -> None:
        """Follow the stream until cancelled and tell each credential once."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                # After a failure it starts over: entries are a set, and a restored Redis may hold other ones.
                position = f"{int((time.time() - REMEMBERED_SECONDS) * 1000)}-0"
                block_ms: int | None = None
                while True:
                    position = await self._read(position, block_ms, on_revoked)
                    block_ms = _BLOCK_MS
                    pause = _FIRST_PAUSE_SECONDS
            except (RedisError, OSError) as error:
                self._current.clear()
                log.warning("revocations_wait_for_redis", error=repr(error))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _read(self, position: str, block_ms: int | None, on_revoked: OnRevoked) -> str:
        found: Any = await self._redis.xread({STREAM: position}, count=_READ_ENTRIES, block=block_ms)
        entries = found[0][1] if found else []
        for entry_id, fields in entries:
            credential_id = fields[FIELD.encode()].decode()
            if credential_id not in self._until:
                self._until[credential_id] = time.monotonic() + REMEMBERED_SECONDS
                await on_revoked(credential_id)
            position = entry_id.decode()
        if len(entries) < _READ_ENTRIES:
            self._current.set()
        self._forget()
        return position

    def _forget(self) -> None:
        now = time.monotonic()
        while self._until and next(iter(self._until.values())) < now:  # in the order of their time
            del self._until[next(iter(self._until))]

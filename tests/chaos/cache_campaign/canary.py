"""Do events flow? A ticket that nobody reads is written past every gateway, and its tags are watched in Redis."""

import asyncio
import contextlib
from collections.abc import Sequence

import aiohttp
from redis.asyncio import Redis
from redis.exceptions import RedisError

from libs.common.cache.search_tags import search_tag
from libs.common.cache.tags import tag_key
from libs.common.cache.ticket_tags import ticket_tag
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from tests.chaos.cache_campaign.cast import Cast, User, now

EVERY_SECONDS = 0.15
POLL_SECONDS = 0.02
FLOWING_SECONDS = 1.0
PATIENCE_SECONDS = 60.0


class Canary:
    """`lags` are pairs: when a write was acknowledged, and how much later both of its tags had been bumped."""

    def __init__(self, company: Cast, user: User) -> None:
        self._company = company
        self._user = user
        self.lags: list[tuple[float, float]] = []

    async def run(self) -> None:
        async with (
            aiohttp.ClientSession(self._company.tickets.url) as http,
            Redis.from_url(self._company.stack.cache_redis_url, socket_timeout=1.0) as redis,
        ):
            async with http.post("/api/tickets", json={"title": "Canary"}, headers=self._signed()) as answer:
                ticket = (await answer.json())["id"]
            tags = [tag_key(ticket_tag(ticket)), tag_key(search_tag(self._user.organization))]
            path = f"/api/tickets/{ticket}/comments"
            while True:
                await asyncio.sleep(EVERY_SECONDS)
                before = await _values(redis, tags)
                async with http.post(path, json={"body": "Tweet"}, headers=self._signed()) as answer:
                    assert answer.status == 201, await answer.text()
                acknowledged = now()
                while any(old == new for old, new in zip(before, await _values(redis, tags), strict=True)):
                    await asyncio.sleep(POLL_SECONDS)
                self.lags.append((acknowledged, now() - acknowledged))

    async def flows(self) -> float:
        """Wait until two writes in a row from now on were made known within a second.

        Raises:
            TimeoutError: after a minute.
        """
        since = now()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                recent = [lag for at, lag in self.lags if at >= since]
                if len(recent) >= 2 and max(recent[-2:]) < FLOWING_SECONDS:
                    return now()
                await asyncio.sleep(POLL_SECONDS)

    def _signed(self) -> dict[str, str]:
        return {PRINCIPAL_HEADER: self._company.signer.principal_token(self._user.principal, "tickets")}


async def _values(redis: Redis, keys: Sequence[str]) -> list[bytes | None]:
    while True:
        with contextlib.suppress(RedisError, OSError):
            values: list[bytes | None] = await redis.mget(keys)  # type: ignore[assignment]
            return values
        await asyncio.sleep(POLL_SECONDS)

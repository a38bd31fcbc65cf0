"""The end of listening when the client library swallows the cancellation, a race that no server can be made to win."""

import asyncio
from typing import Any

from libs.common.cache.readthrough import ReadThroughCache, connect


class SwallowingPubSub:
    """A subscription that takes a cancellation for the end of its wait."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.closed = False

    async def subscribe(self, _channel: str) -> None:
        pass

    async def ping(self) -> None:
        pass

    async def get_message(self, **_options: float) -> dict[str, Any] | None:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return None
        raise AssertionError

    async def aclose(self) -> None:
        self.closed = True


async def test_listening_ends_when_it_is_cancelled_though_the_client_swallows_it(monkeypatch: Any) -> None:
    redis = connect("redis://127.0.0.1:1")
    pubsub = SwallowingPubSub()
    monkeypatch.setattr(redis, "pubsub", lambda: pubsub)
    cache = ReadThroughCache(redis, l1_items=1, l1_seconds=1)
    listening = asyncio.create_task(cache.listen())
    await pubsub.waiting.wait()
    listening.cancel()
    await asyncio.wait([listening], timeout=5)
    assert listening.cancelled()
    assert pubsub.closed
    assert not cache._l1.listening

"""A gateway that takes its time at the points where a cache goes wrong, and may have a bug planted in it.

`python -m tests.chaos.cache_campaign.faulty_gateway` takes CAMPAIGN_SEED, CAMPAIGN_HOLDS (the share of passes that are
held up) and CAMPAIGN_PLANT from the environment. The functions of the product are wrapped here, from outside; how often
each point was held stands among the gateway's metrics.
"""

import asyncio
import os
import random
from typing import Any

from prometheus_client import Counter

from services.gateway import __main__ as service
from services.gateway.upstreams.upstream import Upstream
from tests.chaos.cache_campaign.plants import PLANTS

POINTS = (
    "before_load",  # tags have been read, the load has not begun
    "after_load",  # the answer is here, it is in no cache yet
    "before_bump",  # the write is committed, nobody has heard of it
)
LONGEST_SECONDS = 0.4
_HELD = Counter("campaign_holds_total", "How often a request was held up at a point.", ["point"])


def hold_up(seed: int, share: float) -> None:
    """Make some calls of upstreams slow, before and after. Raises AttributeError when there is no such method."""
    chance = random.Random(seed)
    call = Upstream.call

    async def hold(point: str) -> None:
        if chance.random() < share:
            _HELD.labels(point).inc()
            await asyncio.sleep(chance.random() ** 2 * LONGEST_SECONDS)

    async def call_and_hold(self: Upstream, method: str, path: str, **more: Any) -> Any:
        if path.startswith("/internal/"):
            return await call(self, method, path, **more)
        if method == "GET":
            await hold("before_load")
        answer = await call(self, method, path, **more)
        await hold("after_load" if method == "GET" else "before_bump")
        return answer

    Upstream.call = call_and_hold  # type: ignore[method-assign]


if __name__ == "__main__":
    hold_up(int(os.environ.pop("CAMPAIGN_SEED")), float(os.environ.pop("CAMPAIGN_HOLDS")))
    if plant := os.environ.pop("CAMPAIGN_PLANT", ""):
        PLANTS[plant]()
    service.commands(["serve"])

"""From the change in PostgreSQL to the Socket.IO client: outbox, relay, Kafka, notifier, batch, socket.

The clock starts at the event's `time` (taken in the transaction just before COMMIT) and stops when the client has
the batch; both are clocks of one machine.
"""

import asyncio
import datetime as dt
import time
from collections.abc import Sequence
from typing import Any

from infra.local.stack import Stack
from tests.bench.figures import Figure
from tests.support.clients import Tenant, client
from tests.support.realtime import listening, until

EVENTS_PER_SECOND = 50
BATCH_MS = 100.0


async def measure(stack: Stack, tenants: Sequence[Tenant], seconds: float) -> list[Figure]:
    tenant = tenants[0]
    delays: list[float] = []

    def arrived(batch: list[dict[str, Any]]) -> None:
        now = time.time()
        delays.extend((now - dt.datetime.fromisoformat(item["time"]).timestamp()) * 1000 for item in batch)

    async with client(stack, tenant) as http:
        async with http.post("/api/realtime/token") as answer:
            told = await answer.json()
        async with listening(told["url"], told["token"]) as listener:
            listener.client.on("notifications", arrived)
            count = int(seconds * EVENTS_PER_SECOND)

            async def write(number: int) -> None:
                await asyncio.sleep(number / EVENTS_PER_SECOND)
                async with http.post("/api/tickets", json={"title": f"Ticket {number}"}) as answer:
                    answer.raise_for_status()

            await asyncio.gather(*(write(number) for number in range(count)))
            await until(lambda: len(delays) >= count)
    delays.sort()
    name = "the batch window"
    return [
        Figure(f"event to socket at {EVENTS_PER_SECOND}/s: P50", delays[len(delays) // 2], BATCH_MS, name, "ms"),
        Figure(f"event to socket at {EVENTS_PER_SECOND}/s: P99", delays[int(len(delays) * 0.99)], BATCH_MS, name, "ms"),
    ]

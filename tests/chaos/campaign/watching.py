"""What is watched while a campaign runs: the memory of the processes that live through it, and the hot tables."""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import asyncpg
import psutil

from tests.chaos.campaign.cast import FaultyProcess

EVERY_SECONDS = 2.0
TABLES = ("outbox", "organizations", "tickets", "relay_shards", "relay_instances")
# Dead rows by the statistics (a killed server forgets them) and the size on disk with indexes (it does not).
TABLE_STATE = """
SELECT relname AS name, n_dead_tup AS dead, pg_total_relation_size(relid) AS bytes, autovacuum_count AS vacuums
FROM pg_stat_user_tables WHERE relname = ANY($1)"""
OUTBOX_ROWS = "SELECT count(*) FROM outbox"


class Sample(NamedTuple):
    """The state of a table at a moment."""

    at: float
    dead: int
    bytes: int
    vacuums: int


class Watch:
    """Samples, taken every two seconds; a server that does not answer is left out until it does."""

    def __init__(self, database: asyncpg.Pool, processes: Mapping[str, FaultyProcess]) -> None:
        self._database = database
        self._processes = processes
        self.memory: dict[str, list[int]] = {name: [] for name in processes}
        self.tables: dict[str, list[Sample]] = {name: [] for name in TABLES}
        self.outbox: list[int] = []

    async def run(self) -> None:
        while True:
            for name, process in self._processes.items():
                if process.process is not None and process.alive:
                    self.memory[name].append(psutil.Process(process.process.pid).memory_info().rss)
            try:
                async with asyncio.timeout(EVERY_SECONDS):
                    self.outbox.append(await self._database.fetchval(OUTBOX_ROWS))
                    for row in await self._database.fetch(TABLE_STATE, TABLES):
                        sample = Sample(time.monotonic(), row["dead"], row["bytes"], row["vacuums"])
                        self.tables[row["name"]].append(sample)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pass
            await asyncio.sleep(EVERY_SECONDS)


def quarters(samples: Sequence[int]) -> list[float]:
    """The medians of the four quarters."""
    count = len(samples)
    return [statistics.median(samples[count * n // 4 : count * (n + 1) // 4]) for n in range(4)]

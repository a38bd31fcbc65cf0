"""Partitions of what grows with time: made ahead, and dropped whole when their time is over.

Every instance of the service looks once an hour; a lock in the database lets one of them work at a time.
"""

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from typing import NamedTuple

import structlog
from prometheus_client import Gauge

from libs.common import background
from libs.common.postgres import create_pool
from services.tickets import store_partitions
from services.tickets.database import MAINTENANCE_ROLE
from services.tickets.settings import DatabaseSettings

INTERVAL_SECONDS = 3600.0
FIRST_RUN_SECONDS = 10.0
IDEMPOTENCY_KEPT = dt.timedelta(hours=24)

CHECKED = Gauge(
    "partitions_checked_timestamp_seconds", "When partitions were last made ahead, in seconds since 1970-01-01 UTC."
)
log = structlog.get_logger()


class Partitioned(NamedTuple):
    """How a table is cut: `step` is day or month; what ended more than `kept` ago is dropped (None: kept for ever)."""

    table: str
    step: str
    ahead: dt.timedelta
    kept: dt.timedelta | None


def plan(settings: DatabaseSettings) -> list[Partitioned]:
    """Every partitioned table."""

    def days(number: int) -> dt.timedelta | None:
        return dt.timedelta(days=number) if number else None

    season, week = dt.timedelta(days=92), dt.timedelta(days=7)
    return [
        Partitioned("ticket_history", "month", season, days(settings.history_days)),
        Partitioned("audit_log", "month", season, days(settings.audit_days)),
        Partitioned("idempotency_records", "day", week, IDEMPOTENCY_KEPT),
    ]


async def maintain(settings: DatabaseSettings) -> tuple[int, int]:
    """Make and drop what is due; how many partitions were made and how many dropped.

    Raises:
        OSError, asyncpg.PostgresError: when the database is away, or a long transaction holds a partition.
    """
    made = dropped = 0
    pool = await create_pool(
        settings.database_url, role=MAINTENANCE_ROLE, service="tickets-partitions", minimum=0, maximum=1
    )
    async with pool, pool.acquire() as connection:
        for table in plan(settings):
            made += await store_partitions.make_partitions(connection, table.table, step=table.step, ahead=table.ahead)
        CHECKED.set_to_current_time()
        for table in plan(settings):
            if table.kept is not None:
                dropped += await store_partitions.drop_partitions(connection, table.table, kept=table.kept)
    if made or dropped:
        log.info("partitions", made=made, dropped=dropped)
    return made, dropped


@contextlib.asynccontextmanager
async def maintained(settings: DatabaseSettings) -> AsyncIterator[None]:
    """Look once an hour while the block lasts. Begins when the first look has ended, or failed for 10 s."""
    looked = asyncio.Event()

    async def look() -> None:
        while True:
            await maintain(settings)
            looked.set()
            await asyncio.sleep(INTERVAL_SECONDS)

    async with background.running("partitions", look):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(looked.wait(), FIRST_RUN_SECONDS)
        yield

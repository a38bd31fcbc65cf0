"""SQL that asks a server where it stands in the write-ahead log."""

from typing import NamedTuple

import asyncpg

from libs.common.consistency import Position

_INSERT_TIMELINE = "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int"

# Where a server stands. A standby is on the timeline whose row it has replayed (its control file lags behind a
# promotion). `flushed` is what a primary may have sent to its standbys. `standby` comes last: recovery ends once, so
# whoever says that it is in recovery was so all along.
SERVER_POSITION = f"""
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END AS lsn,
       CASE WHEN pg_is_in_recovery() THEN (SELECT max(timeline) FROM database_timelines)
            ELSE {_INSERT_TIMELINE} END AS timeline,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END AS flushed,
       pg_is_in_recovery() AS standby"""

# The same for a role that may read no table; on a primary only.
PRIMARY_TIMELINE = f"SELECT {_INSERT_TIMELINE}"

# The upper bound of what the transaction's statements so far could see.
READ_POSITION = "SELECT read_position() AS lsn"

# What a dump has brought from another cluster goes at the same moment: a standby that showed a later timeline than its
# primary's would look as if it had been promoted, and one that shows a timeline before its time is not yet on it.
RECORD_TIMELINE = """
WITH own AS (INSERT INTO database_timelines (timeline) VALUES ($1) ON CONFLICT DO NOTHING)
DELETE FROM database_timelines WHERE timeline > $1"""
# Its row does not wait for a synchronous standby, for it may be what the standby is waited for with.
COMMIT_LOCALLY = "SET synchronous_commit = local"


class Standing(NamedTuple):
    """Where a server stood when it was asked. `flushed` is None on a standby."""

    position: Position
    standby: bool
    flushed: Position | None


async def standing(connection: asyncpg.Connection) -> Standing:
    row = await connection.fetchrow(SERVER_POSITION)
    timeline = row["timeline"]
    flushed = None if row["flushed"] is None else Position(timeline, row["flushed"])
    return Standing(Position(timeline, row["lsn"]), row["standby"], flushed)


async def primary_timeline(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval(PRIMARY_TIMELINE))


async def read_position(connection: asyncpg.Connection, timeline: int) -> Position:
    return Position(timeline, await connection.fetchval(READ_POSITION))


async def record_timeline(connection: asyncpg.Connection, timeline: int) -> None:
    """Let standbys know the timeline that they follow, the latest one. The connection is for writing nothing else."""
    await connection.execute(COMMIT_LOCALLY)
    await connection.execute(RECORD_TIMELINE, timeline)

"""SQL of partitions; the functions are in migrations/0002_history.sql and run as the tables' owner."""

import datetime as dt

import asyncpg

MAKE_PARTITIONS = "SELECT make_partitions($1, $2, $3)"
DROP_PARTITIONS = "SELECT drop_partitions($1, $2)"


async def make_partitions(connection: asyncpg.Connection, table: str, *, step: str, ahead: dt.timedelta) -> int:
    """Make what is missing from now until `ahead` from now; how many were made."""
    return int(await connection.fetchval(MAKE_PARTITIONS, table, step, ahead))


async def drop_partitions(connection: asyncpg.Connection, table: str, *, kept: dt.timedelta) -> int:
    """Drop what ended more than `kept` ago; how many were dropped."""
    return int(await connection.fetchval(DROP_PARTITIONS, table, kept))

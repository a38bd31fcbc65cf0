"""SQL of the relay: shard leases, and the outbox rows of the shards it owns."""

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence

import asyncpg

# I am here; whoever was not seen for a lease's time is gone.
HEARTBEAT = """
INSERT INTO relay_instances (id, seen_at) VALUES ($1, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at"""

FORGET_INSTANCES = """
DELETE FROM relay_instances WHERE id = $1 OR seen_at < clock_timestamp() - $2::interval * 10"""

COUNT_INSTANCES = """
SELECT count(*) FROM relay_instances WHERE seen_at > clock_timestamp() - $1::interval"""

# Prolong the leases that are still ours; what comes back is what we own, by epoch.
RENEW_LEASES = """
UPDATE relay_shards SET expires_at = clock_timestamp() + $2::interval
WHERE owner = $1 AND expires_at > clock_timestamp()
RETURNING shard, epoch"""

# Take up to $3 shards that nobody holds; the epoch tells this ownership from every earlier one.
CLAIM_LEASES = """
UPDATE relay_shards SET owner = $1, epoch = epoch + 1, expires_at = clock_timestamp() + $2::interval
WHERE shard IN (
    SELECT shard FROM relay_shards WHERE expires_at <= clock_timestamp()
    ORDER BY shard LIMIT $3 FOR UPDATE SKIP LOCKED)
RETURNING shard, epoch"""

# Give shards up, so that others need not wait for the leases to end.
RELEASE_LEASES = """
UPDATE relay_shards SET expires_at = '-infinity' WHERE owner = $1 AND shard = ANY($2)"""

# The rows of our shards that exist, by position, with the place in the write-ahead log that includes all of them. Its
# two halves are read by the statement that reads the rows: after a promotion a log position means something else.
SELECT_ROWS = """
WITH here AS MATERIALIZED (
    SELECT pg_current_wal_insert_lsn() AS lsn,
           ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int AS timeline
)
SELECT position, organization_id, ticket_id, version, shard, event_id, type, data, traceparent, created_at,
       timeline, lsn
FROM outbox CROSS JOIN here WHERE shard = ANY($1) ORDER BY position LIMIT $2"""

# Delete what Kafka has acknowledged, but only rows of shards that are still ours in the same epoch.
DELETE_ROWS = """
DELETE FROM outbox USING relay_shards, unnest($2::smallint[], $3::bigint[]) AS held (shard, epoch)
WHERE outbox.position = ANY($4)
  AND relay_shards.shard = outbox.shard AND relay_shards.owner = $1
  AND held.shard = outbox.shard AND relay_shards.epoch = held.epoch"""

# How much waits, counted up to a million, and since when: the oldest row is that with the first position.
BACKLOG = """
SELECT (SELECT count(*) FROM (SELECT FROM outbox LIMIT 1000000) AS counted) AS rows,
       coalesce(extract(epoch FROM clock_timestamp() - (SELECT created_at FROM outbox ORDER BY position LIMIT 1)), 0)
           AS age"""


async def heartbeat(connection: asyncpg.Connection, relay_id: uuid.UUID) -> None:
    await connection.execute(HEARTBEAT, relay_id)


async def forget_instances(connection: asyncpg.Connection, relay_id: uuid.UUID, lease: dt.timedelta) -> None:
    await connection.execute(FORGET_INSTANCES, relay_id, lease)


async def count_instances(connection: asyncpg.Connection, lease: dt.timedelta) -> int:
    return int(await connection.fetchval(COUNT_INSTANCES, lease))


async def renew_leases(connection: asyncpg.Connection, relay_id: uuid.UUID, lease: dt.timedelta) -> dict[int, int]:
    """The shards that are still ours, with their epochs."""
    rows = await connection.fetch(RENEW_LEASES, relay_id, lease)
    return {row["shard"]: row["epoch"] for row in rows}


async def claim_leases(
    connection: asyncpg.Connection, relay_id: uuid.UUID, lease: dt.timedelta, count: int
) -> dict[int, int]:
    """Up to `count` shards that were free and now are ours, with their epochs."""
    rows = await connection.fetch(CLAIM_LEASES, relay_id, lease, count)
    return {row["shard"]: row["epoch"] for row in rows}


async def release_leases(connection: asyncpg.Connection, relay_id: uuid.UUID, shards: Sequence[int]) -> None:
    await connection.execute(RELEASE_LEASES, relay_id, shards)


async def select_rows(connection: asyncpg.Connection, shards: Sequence[int], limit: int) -> list[asyncpg.Record]:
    return list(await connection.fetch(SELECT_ROWS, shards, limit))


async def delete_rows(
    connection: asyncpg.Connection,
    relay_id: uuid.UUID,
    epochs: Mapping[int, int],
    positions: Sequence[int],
) -> None:
    await connection.execute(DELETE_ROWS, relay_id, list(epochs), list(epochs.values()), positions)


async def backlog(connection: asyncpg.Connection) -> tuple[int, float]:
    """How many rows wait for Kafka (a million stands for any more) and how old the oldest is, in seconds."""
    row = await connection.fetchrow(BACKLOG)
    return int(row["rows"]), float(row["age"])

"""SQL of reports: they read much, so they run on the analytics replica only."""

import datetime as dt
import uuid

import asyncpg

# Tickets created in a range of time, by their status now. Read from an index alone.
COUNT_BY_STATUS = """
SELECT status_id, count(*) AS count FROM tickets
WHERE organization_id = $1 AND status_id = ANY($4::smallint[]) AND created_at >= $2 AND created_at < $3
GROUP BY status_id"""

# The same by their assignee now, most first.
COUNT_BY_ASSIGNEE = """
SELECT assigned_to, count(*) AS count FROM tickets
WHERE organization_id = $1 AND created_at >= $2 AND created_at < $3
GROUP BY assigned_to ORDER BY count DESC, assigned_to"""

# The same by the day of their creation.
COUNT_BY_DAY = """
SELECT (created_at AT TIME ZONE 'UTC')::date AS day, count(*) AS count FROM tickets
WHERE organization_id = $1 AND created_at >= $2 AND created_at < $3
GROUP BY day"""

# How long tickets created in a range of time waited; percentiles $4. An aggregate passes over what is NULL.
TIMES = """
SELECT count(first_response_at) AS responded,
       percentile_cont($4::float8[]) WITHIN GROUP (ORDER BY date_part('epoch', first_response_at - created_at))
           AS first_response,
       count(solved_at) AS solved,
       percentile_cont($4::float8[]) WITHIN GROUP (ORDER BY date_part('epoch', solved_at - created_at))
           AS resolution
FROM tickets WHERE organization_id = $1 AND created_at >= $2 AND created_at < $3"""

# How old the tickets of some statuses are: percentiles $3 and how many are younger than each of $4 days.
BACKLOG_AGES = """
WITH age AS MATERIALIZED (
    SELECT date_part('epoch', statement_timestamp() - created_at) AS seconds FROM tickets
    WHERE organization_id = $1 AND status_id = ANY($2::smallint[])
)
SELECT statement_timestamp() AS at, count(*) AS count, max(seconds) AS oldest,
       percentile_cont($3::float8[]) WITHIN GROUP (ORDER BY seconds) AS percentiles,
       ARRAY(SELECT (SELECT count(*) FROM age WHERE seconds < days * 86400)
             FROM unnest($4::int[]) WITH ORDINALITY AS bound (days, place) ORDER BY place) AS younger
FROM age"""


async def count_by_status(
    connection: asyncpg.Connection,
    organization_id: uuid.UUID,
    start: dt.datetime,
    end: dt.datetime,
    statuses: list[int],
) -> list[asyncpg.Record]:
    return list(await connection.fetch(COUNT_BY_STATUS, organization_id, start, end, statuses))


async def count_by_assignee(
    connection: asyncpg.Connection, organization_id: uuid.UUID, start: dt.datetime, end: dt.datetime
) -> list[asyncpg.Record]:
    return list(await connection.fetch(COUNT_BY_ASSIGNEE, organization_id, start, end))


async def count_by_day(
    connection: asyncpg.Connection, organization_id: uuid.UUID, start: dt.datetime, end: dt.datetime
) -> list[asyncpg.Record]:
    return list(await connection.fetch(COUNT_BY_DAY, organization_id, start, end))


async def times(
    connection: asyncpg.Connection,
    organization_id: uuid.UUID,
    start: dt.datetime,
    end: dt.datetime,
    percentiles: list[float],
) -> asyncpg.Record:
    return await connection.fetchrow(TIMES, organization_id, start, end, percentiles)


async def backlog_ages(
    connection: asyncpg.Connection,
    organization_id: uuid.UUID,
    statuses: list[int],
    percentiles: list[float],
    days: list[int],
) -> asyncpg.Record:
    return await connection.fetchrow(BACKLOG_AGES, organization_id, statuses, percentiles, days)

"""A tenant with as many tickets as one likes, written by SQL: skewed as a desk's are, most of them closed.

Rows are made by a formula of their number, so two runs make the same table. They are written past triggers and
row-level security by a superuser; statistics and the visibility map are made at the end, as autovacuum would.
"""

import asyncio
import dataclasses
import datetime as dt
import uuid

import asyncpg

AGENTS = 100
REQUESTERS = 4999
COMMENTED = 20  # every twentieth ticket has comments and a history
LONGEST = 1000  # comments and versions of the newest ticket
_CHUNK = 100_000

# A UUID by number, so that every row can be named without looking it up; ordered by number, as version 7 is by time.
_UUID_OF = """
CREATE OR REPLACE FUNCTION pg_temp.uuid_of(organization uuid, number bigint) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (lpad(to_hex(number), 12, '0') || '70008000' || right(organization::text, 12))::uuid"""

_FILL_USERS = """
INSERT INTO users (organization_id, id, email, name, role)
SELECT $1, pg_temp.uuid_of($1, number), number || '@example.com', 'User ' || number, 'agent'
FROM (SELECT generate_series(0, $2 - 1) UNION ALL SELECT 1000 + generate_series(0, $3 - 1) UNION ALL SELECT 100000)
    AS numbers (number)"""

# $2 tickets in all, $3 and $4 the first and the last number of this chunk, $5 when the newest was created. A year
# lies between the first and the last. The newer a ticket is, the likelier it is open.
_FILL_TICKETS = """
INSERT INTO tickets (organization_id, id, number, title, description, status_id, priority_id, user_id, assigned_to,
                     external_id, fields, version, created_at, updated_at, first_response_at, solved_at)
SELECT $1, pg_temp.uuid_of($1, 1000000 + number), number,
       'Printer ' || number % 977 || ' on floor ' || number % 41 || ' does not answer since the last update',
       'Ticket ' || number || ': it worked until yesterday. Paper and cable are fine, says ' || md5(number::text),
       status_id, priority_id,
       pg_temp.uuid_of($1, CASE WHEN hash % 5 = 0 THEN 100000 ELSE 1000 + hash % 4999 END),
       CASE WHEN hash / 11 % 10 > 0 THEN pg_temp.uuid_of($1, hash / 7 % 100) END,
       'legacy-' || number, '{"source": "import"}', 1 + hash % 6, created_at, created_at + lasted,
       CASE WHEN hash % 4 > 0 THEN created_at + lasted / 10 END,
       CASE WHEN status_id > 2 THEN created_at + lasted END
FROM generate_series($3::bigint, $4::bigint) AS number
CROSS JOIN LATERAL (SELECT abs(hashint8(number)::bigint) AS hash) AS hashed
CROSS JOIN LATERAL (
    SELECT date_trunc('milliseconds', $5::timestamptz - ($2::bigint - number) * (interval '365 days' / $2::bigint))
               AS created_at,
           (hash % 1000000) * interval '0.3 seconds' AS lasted,
           CASE WHEN hash % 100 < 20 THEN 1 WHEN hash % 100 < 80 THEN 2 WHEN hash % 100 < 95 THEN 3 ELSE 4 END
               AS priority_id,
           CASE WHEN hash / 100 % 1000 < 10 + 90 * power(number::float8 / $2::bigint, 20) THEN 1
                WHEN hash / 100 % 1000 < 20 + 180 * power(number::float8 / $2::bigint, 20) THEN 2
                WHEN hash / 100 % 1000 < 80 + 500 * power(number::float8 / $2::bigint, 10) THEN 3 ELSE 4 END
               AS status_id
) AS drawn"""

# Three comments for every twentieth ticket, $3 for the newest ($2).
_FILL_COMMENTS = """
INSERT INTO comments (organization_id, id, ticket_id, author_id, body, created_at)
SELECT $1, pg_temp.uuid_of($1, 10000000 + number * 2000 + turn), pg_temp.uuid_of($1, 1000000 + number),
       pg_temp.uuid_of($1, number % 100), 'Comment ' || turn || ': please try again.',
       $5::timestamptz + turn * interval '1 second'
FROM generate_series($2::bigint, 1, -$4::bigint) AS number,
     generate_series(1, CASE WHEN number = $2 THEN $3::bigint ELSE 3 END) AS turn"""

# Two versions of every twentieth ticket, $3 of the newest ($2), all in the partition of now.
_FILL_HISTORY = """
INSERT INTO ticket_history (organization_id, ticket_id, version, at, event_id, type, actor_id, actor_kind, actor_name,
                            changes)
SELECT $1, pg_temp.uuid_of($1, 1000000 + number), version, $5::timestamptz + version * interval '1 millisecond',
       gen_random_uuid(), 'ticket.updated.v1', pg_temp.uuid_of($1, number % 100), 'user', 'Agent',
       '{"priority": ["low", "high"]}'
FROM generate_series($2::bigint, 1, -$4::bigint) AS number,
     generate_series(1, CASE WHEN number = $2 THEN $3::bigint ELSE 2 END) AS version"""

# What stands beside tickets in a database of many tenants that is in use: organizations, credentials, keys, answers to
# idempotency keys, audited actions, and events that wait for the relay.
_FILL_AROUND = (
    """
    INSERT INTO organizations (id, slug, name)
    SELECT pg_temp.uuid_of($1, 20000000 + number), 'neighbour-' || number || '-' || right($1::text, 12), 'Neighbour'
    FROM generate_series(1, 2000) AS number""",
    """
    INSERT INTO credentials (organization_id, user_id, password_hash)
    SELECT organization_id, id, '$argon2id$' || email FROM users WHERE organization_id = $1""",
    """
    INSERT INTO api_keys (organization_id, user_id, name, prefix, key_sha256)
    SELECT organization_id, id, 'key', 'rdk_', sha256(uuid_send(id)) FROM users WHERE organization_id = $1""",
    """
    INSERT INTO idempotency_records (organization_id, user_id, key_sha256, fingerprint, status, headers, body)
    SELECT $1, pg_temp.uuid_of($1, number % 100), sha256(int4send(number)), sha256('body'), 201, '{}', '{}'
    FROM generate_series(1, 20000) AS number""",
    """
    INSERT INTO audit_log (organization_id, actor_id, actor_kind, actor_name, action)
    SELECT $1, pg_temp.uuid_of($1, number % 100), 'user', 'Agent',
           CASE WHEN number % 50 > 0 THEN 'session.started' ELSE 'key.created' END
    FROM generate_series(1, 20000) AS number""",
    """
    INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, created_at)
    SELECT $1, pg_temp.uuid_of($1, 1000000 + number), 2, number % 64, gen_random_uuid(), 'ticket.updated.v1',
           convert_to(repeat('x', 500), 'UTF8'), now()
    FROM generate_series(1, 20000) AS number""",
)

_INDEXES = """
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition FROM pg_index
WHERE indrelid = 'tickets'::regclass AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)"""
_ALL_VISIBLE = "SELECT relallvisible = relpages FROM pg_class WHERE oid = $1::regclass"


@dataclasses.dataclass(frozen=True)
class ManyTickets:
    """The tenant that was filled; its tickets are numbered from 1, the oldest, to `tickets`."""

    organization_id: uuid.UUID
    tickets: int
    newest: dt.datetime

    def agent(self, number: int) -> uuid.UUID:
        """One of 100 users whom tickets are assigned to."""
        return self._uuid(number % AGENTS)

    def requester(self, number: int) -> uuid.UUID:
        """One of 4,999 users who created four of five tickets."""
        return self._uuid(1000 + number % REQUESTERS)

    @property
    def importer(self) -> uuid.UUID:
        """The user who created every fifth ticket."""
        return self._uuid(100_000)

    def ticket(self, number: int) -> uuid.UUID:
        return self._uuid(1_000_000 + number)

    @property
    def longest(self) -> uuid.UUID:
        """The ticket with a thousand comments and versions."""
        return self.ticket(self.tickets)

    def created_at(self, number: int) -> dt.datetime:
        """When a ticket was created, to a few milliseconds."""
        return self.newest - dt.timedelta(days=365) / self.tickets * (self.tickets - number)

    def _uuid(self, number: int) -> uuid.UUID:
        return uuid.UUID(f"{number:012x}70008000{self.organization_id.hex[-12:]}")


async def fill(superuser: asyncpg.Pool, organization_id: uuid.UUID, tickets: int) -> ManyTickets:
    """Write `tickets` tickets (a multiple of 20) into an organization that has none.

    For 100,000 and more, indexes are dropped and built again: nobody else should use the table meanwhile.
    """
    async with superuser.acquire() as connection:
        newest = await connection.fetchval("SELECT date_trunc('milliseconds', now())")
        await connection.execute("SET session_replication_role = replica")  # no checks of foreign keys, row by row
        await connection.execute("SET maintenance_work_mem = '256MB'")
        await connection.execute(_UUID_OF)
        await connection.execute(_FILL_USERS, organization_id, AGENTS, REQUESTERS)
        indexes = await connection.fetch(_INDEXES) if tickets >= _CHUNK else []  # to build them at the end is faster
        for index in indexes:
            await connection.execute(f"DROP INDEX {index['name']}")
        for first in range(1, tickets + 1, _CHUNK):
            last = min(first + _CHUNK - 1, tickets)
            await connection.execute(_FILL_TICKETS, organization_id, tickets, first, last, newest, timeout=600)
        for index in indexes:
            await connection.execute(index["definition"], timeout=600)
        for statement in (_FILL_COMMENTS, _FILL_HISTORY):
            await connection.execute(statement, organization_id, tickets, LONGEST, COMMENTED, newest, timeout=600)
        await connection.execute(
            "UPDATE organizations SET last_ticket_number = $2 WHERE id = $1", organization_id, tickets
        )
        await connection.execute("RESET session_replication_role")
        await connection.execute("RESET maintenance_work_mem")
        await connection.execute("VACUUM (ANALYZE, PARALLEL 0)", timeout=600)
    await visible(superuser)
    return ManyTickets(organization_id, tickets, newest)


async def fill_around(superuser: asyncpg.Pool, many: ManyTickets) -> None:
    """Write 2,000 empty organizations, and 20,000 rows into each table that serves writes rather than lists."""
    async with superuser.acquire() as connection:
        await connection.execute(_UUID_OF)
        for statement in _FILL_AROUND:
            await connection.execute(statement, many.organization_id, timeout=600)
        await connection.execute("ANALYZE")


async def visible(superuser: asyncpg.Pool) -> None:
    """Vacuum until every page of the tables is marked as visible to all.

    The first time may come too early: a replica's feedback, sent every 10 s, holds back what counts as seen by all.
    """
    async with asyncio.timeout(60):
        for table in ("tickets", "comments"):
            while True:
                await superuser.execute(f"VACUUM (PARALLEL 0) {table}", timeout=600)
                if await superuser.fetchval(_ALL_VISIBLE, table):
                    break
                await asyncio.sleep(0.5)

"""Plain-SQL migrations: `migrations/NNNN_name.sql`, applied in order, each in a transaction of its own.

A deployment has two phases. What the new code needs is added **before** it is rolled out, while the old code runs
(`NNNN_name.sql`); what only the old code needed is taken away **after** the last of it has stopped
(`NNNN_name.after.sql`). A service starts once the first kind is there.

A file whose first line is `-- no transaction` is run statement by statement, each ending with a semicolon at the end
of a line: `CREATE INDEX CONCURRENTLY` needs that. Such a file may be run again after it failed half-way, so an index
that it is about to create and that exists already is dropped first.
"""

import asyncio
import enum
import hashlib
import re
import time
from pathlib import Path
from typing import NamedTuple

import asyncpg
import structlog

CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""
APPLIED = "SELECT name, sha256 FROM schema_migrations ORDER BY name"
RECORD = "INSERT INTO schema_migrations (name, sha256) VALUES ($1, $2)"
# Tried and not waited for: a statement that waits has a snapshot, and CREATE INDEX CONCURRENTLY would wait for that.
TRY_LOCK = "SELECT pg_try_advisory_lock(hashtext('relaydesk migrations'))"

# A statement of a migration that cannot get its lock blocks everybody behind it for this long, then steps back. One
# that runs CONCURRENTLY blocks nobody while it waits, and would throw hours of work away.
LOCK_TIMEOUT = "SET lock_timeout = '2s'"
NO_LOCK_TIMEOUT = "SET lock_timeout = 0"
LOCK_TRIES = 30
_PAUSE_SECONDS = 1.0
_NO_TRANSACTION = "-- no transaction"
_CREATED_INDEX = re.compile(r"\bCREATE (?:UNIQUE )?INDEX CONCURRENTLY (\w+)")

log = structlog.get_logger()


class SchemaError(Exception):
    """The database's schema is not the one this code needs."""


class Phase(enum.StrEnum):
    """When a migration runs: before the code that needs it is deployed, or after the code it breaks has gone."""

    BEFORE = "before"
    AFTER = "after"


class Migration(NamedTuple):
    name: str
    sha256: str
    sql: str

    @property
    def phase(self) -> Phase:
        return Phase.AFTER if self.name.endswith(".after") else Phase.BEFORE

    @property
    def statements(self) -> list[str]:
        """What a migration without a transaction runs one by one; empty for one that is run as a whole."""
        if not self.sql.startswith(_NO_TRANSACTION):
            return []
        return [text for part in re.split(r";[ \t]*\n", self.sql) if (text := _without_comments(part))]


def read(folder: Path) -> list[Migration]:
    """The migrations of `folder`, in order."""
    found = []
    for path in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql")):
        sql = path.read_text(encoding="utf-8")
        found.append(Migration(path.stem, hashlib.sha256(sql.encode()).hexdigest(), sql))
    return found


async def migrate(url: str, folder: Path, phases: frozenset[Phase] = frozenset(Phase)) -> list[str]:
    """Apply what is missing of `phases` and return the names applied now. Safe to run from several places at once.

    Raises:
        SchemaError: when an applied migration was changed afterwards, when another run does not end, or when a
            migration did not get its lock in 30 tries of 2 s.
    """
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await _lock(connection)
        await connection.execute(CREATE_TABLE)
        applied = await _applied(connection)
        wanted = read(folder)
        _compare(applied, wanted)
        missing = [migration for migration in wanted if migration.name not in applied and migration.phase in phases]
        for migration in missing:
            await _apply(connection, migration)
        return [migration.name for migration in missing]
    finally:
        await connection.close()


async def require_current(connection: asyncpg.Connection, folder: Path) -> None:
    """Refuse to start on a stale schema. A newer one is none: what this code needs is taken away only after it.

    Raises:
        SchemaError: with the command that mends it.
    """
    applied = await _applied(connection)
    wanted = read(folder)
    _compare(applied, wanted)
    missing = [m.name for m in wanted if m.phase is Phase.BEFORE and m.name not in applied]
    if missing:
        raise SchemaError(f"migrations are missing ({', '.join(missing)}): run the service's `migrate` command")


async def _lock(connection: asyncpg.Connection) -> None:
    deadline = time.monotonic() + 600
    while not await connection.fetchval(TRY_LOCK):
        if time.monotonic() > deadline:
            raise SchemaError("another migration has been running for ten minutes")
        await asyncio.sleep(_PAUSE_SECONDS / 10)


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    for attempt in range(1, LOCK_TRIES + 1):
        try:
            for statement in migration.statements:
                await connection.execute(NO_LOCK_TIMEOUT if " CONCURRENTLY " in statement else LOCK_TIMEOUT)
                if created := _CREATED_INDEX.search(statement):
                    await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {created[1]}")
                await connection.execute(statement)
            await connection.execute(LOCK_TIMEOUT)
            async with connection.transaction():
                if not migration.statements:
                    await connection.execute(migration.sql)
                await connection.execute(RECORD, migration.name, migration.sha256)
        except asyncpg.LockNotAvailableError as error:
            if attempt == LOCK_TRIES:
                raise SchemaError(
                    f"{migration.name} did not get its lock in {LOCK_TRIES} tries: a long transaction is in its way"
                ) from error
            log.warning("migration_waits_for_lock", migration=migration.name, attempt=attempt)
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            return


async def _applied(connection: asyncpg.Connection) -> dict[str, str]:
    try:
        return {row["name"]: row["sha256"] for row in await connection.fetch(APPLIED)}
    except asyncpg.UndefinedTableError:
        return {}


def _compare(applied: dict[str, str], wanted: list[Migration]) -> None:
    for migration in wanted:
        if applied.get(migration.name, migration.sha256) != migration.sha256:
            raise SchemaError(f"migration {migration.name} was changed after it had been applied")


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("--")).strip()

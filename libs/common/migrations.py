"""Plain-SQL migrations: `migrations/NNNN_name.sql`, applied in order and together in one transaction."""

import hashlib
from pathlib import Path

import asyncpg

CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""
APPLIED = "SELECT name, sha256 FROM schema_migrations ORDER BY name"
RECORD = "INSERT INTO schema_migrations (name, sha256) VALUES ($1, $2)"
LOCK = "SELECT pg_advisory_xact_lock(hashtext('relaydesk migrations'))"


class SchemaError(Exception):
    """The database's schema is not the one this code needs."""


def read(folder: Path) -> list[tuple[str, str, str]]:
    """The migrations of `folder` as (name, sha256, SQL), in order."""
    found = []
    for path in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql")):
        sql = path.read_text(encoding="utf-8")
        found.append((path.stem, hashlib.sha256(sql.encode()).hexdigest(), sql))
    return found


async def migrate(url: str, folder: Path) -> list[str]:
    """Apply what is missing and return the names applied now. Safe to run from several places at once.

    Raises:
        SchemaError: when an applied migration was changed afterwards.
    """
    connection = await asyncpg.connect(url, timeout=10)
    try:
        applied_now = []
        async with connection.transaction():
            await connection.execute(LOCK)
            await connection.execute(CREATE_TABLE)
            applied = {row["name"]: row["sha256"] for row in await connection.fetch(APPLIED)}
            wanted = read(folder)
            _compare(applied, wanted)
            for name, sha256, sql in wanted:
                if name not in applied:
                    await connection.execute(sql)
                    await connection.execute(RECORD, name, sha256)
                    applied_now.append(name)
        return applied_now
    finally:
        await connection.close()


async def require_current(connection: asyncpg.Connection, folder: Path) -> None:
    """Refuse to start on a stale schema.

    Raises:
        SchemaError: with the command that mends it.
    """
    try:
        applied = {row["name"]: row["sha256"] for row in await connection.fetch(APPLIED)}
    except asyncpg.UndefinedTableError:
        applied = {}
    wanted = read(folder)
    _compare(applied, wanted)
    missing = [name for name, _sha256, _sql in wanted if name not in applied]
    if missing:
        raise SchemaError(f"migrations are missing ({', '.join(missing)}): run the service's `migrate` command")


def _compare(applied: dict[str, str], wanted: list[tuple[str, str, str]]) -> None:
    for name, sha256, _sql in wanted:
        if applied.get(name, sha256) != sha256:
            raise SchemaError(f"migration {name} was changed after it had been applied")

"""Migrations on a real server: phases, locks, and files that cannot run in a transaction."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common import migrations
from libs.common.migrations import Phase, SchemaError, migrate, require_current

VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'things_name'::regclass"
UNIQUE_INDEX = "-- no transaction\nCREATE UNIQUE INDEX CONCURRENTLY things_name ON things (name);\n"


@pytest_asyncio.fixture
async def url(stack: Stack) -> AsyncIterator[str]:
    yield await stack.primary.create_database("migrations")
    await stack.primary.drop_database("migrations")


@pytest_asyncio.fixture
async def connection(url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(url)
    yield opened
    await opened.close()


def folder_with(path: Path, **files: str) -> Path:
    for name, sql in files.items():
        (path / f"{name.replace('__after', '.after')}.sql").write_text(sql)
    return path


async def test_what_the_old_code_needs_goes_after_it(url: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        **{
            "0001_things": "CREATE TABLE things (name text, old text);",
            "0002_drop__after": "ALTER TABLE things DROP COLUMN old;",
            "0003_new": "ALTER TABLE things ADD COLUMN new text;",
        },
    )
    assert await migrate(url, folder, frozenset({Phase.BEFORE})) == ["0001_things", "0003_new"]
    await require_current(connection, folder)
    await connection.execute("INSERT INTO things (name, old, new) VALUES ('a', 'b', 'c')")
    assert await migrate(url, folder, frozenset({Phase.AFTER})) == ["0002_drop.after"]
    with pytest.raises(asyncpg.UndefinedColumnError):
        await connection.execute("SELECT old FROM things")
    assert await migrate(url, folder) == []


async def test_a_service_refuses_a_schema_that_lacks_what_it_needs(
    url: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, **{"0001_things": "CREATE TABLE things (name text);"})
    with pytest.raises(SchemaError, match=r"0001_things.*migrate"):
        await require_current(connection, folder)
    await migrate(url, folder)
    folder_with(tmp_path, **{"0002_more": "SELECT 1;"})
    with pytest.raises(SchemaError, match="0002_more"):
        await require_current(connection, folder)


async def test_a_migration_that_fails_leaves_nothing_and_can_be_run_again(
    url: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, **{"0001_things": "CREATE TABLE things (name text); SELECT 1 / 0;"})
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(url, folder)
    assert await connection.fetchval("SELECT to_regclass('things')") is None
    folder_with(tmp_path, **{"0001_things": "CREATE TABLE things (name text);"})
    assert await migrate(url, folder) == ["0001_things"]


async def test_an_index_that_was_left_half_made_is_made_anew(
    url: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, **{"0001_things": "CREATE TABLE things (name text);", "0002_index": UNIQUE_INDEX})
    await migrate(url, folder_with(tmp_path, **{"0002_index": "-- no transaction\nSELECT 1;\n"}))
    await connection.execute("DELETE FROM schema_migrations WHERE name = '0002_index'")
    folder_with(tmp_path, **{"0002_index": UNIQUE_INDEX})
    await connection.execute("INSERT INTO things VALUES ('a'), ('a')")
    with pytest.raises(asyncpg.UniqueViolationError):
        await migrate(url, folder)
    assert await connection.fetchval(VALID) is False
    await connection.execute("DELETE FROM things")
    assert await migrate(url, folder) == ["0002_index"]
    assert await connection.fetchval(VALID) is True


async def test_two_migrations_at_once_do_the_work_once(url: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, **{"0001_things": "CREATE TABLE things (name text);", "0002_index": UNIQUE_INDEX})
    async with asyncio.timeout(60):
        applied = await asyncio.gather(*(migrate(url, folder) for _ in range(3)))
    assert sorted(applied, key=len) == [[], [], ["0001_things", "0002_index"]]


async def test_a_migration_that_waits_for_a_lock_lets_others_pass(
    url: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """ALTER TABLE behind a long transaction would block every later reader until that ends."""
    folder = folder_with(tmp_path, **{"0001_things": "CREATE TABLE things (name text);"})
    await migrate(url, folder)
    folder_with(tmp_path, **{"0002_more": "ALTER TABLE things ADD COLUMN more text;"})
    reader = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(60):
            async with connection.transaction():
                await connection.execute("SELECT * FROM things")
                running = asyncio.create_task(migrate(url, folder))
                waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
                while not await reader.fetchval(waiting):
                    await asyncio.sleep(0.01)
                started = time.monotonic()
                await reader.execute("SELECT * FROM things")  # behind the migration, until that steps back
                assert time.monotonic() - started < 20
                assert not running.done()
            assert await running == ["0002_more"]
    finally:
        await reader.close()


async def test_a_migration_gives_up_with_a_sentence(
    url: str, connection: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "SET lock_timeout = '50ms'")
    monkeypatch.setattr(migrations, "LOCK_TRIES", 1)
    folder = folder_with(tmp_path, **{"0001_things": "CREATE TABLE things (name text);"})
    await migrate(url, folder)
    folder_with(tmp_path, **{"0002_more": "ALTER TABLE things ADD COLUMN more text;"})
    async with connection.transaction():
        await connection.execute("SELECT * FROM things")
        with pytest.raises(SchemaError, match="0002_more did not get its lock"):
            await migrate(url, folder)


async def test_an_index_is_waited_for_however_long_a_transaction_takes(
    url: str, connection: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CREATE INDEX CONCURRENTLY blocks nobody while it waits, and giving up would throw its work away."""
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "SET lock_timeout = '50ms'")
    monkeypatch.setattr(migrations, "LOCK_TRIES", 1)
    folder = folder_with(tmp_path, **{"0001_things": "CREATE TABLE things (name text);"})
    await migrate(url, folder)
    folder_with(tmp_path, **{"0002_index": UNIQUE_INDEX})
    watcher = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(60):
            async with connection.transaction():
                await connection.execute("INSERT INTO things VALUES ('a')")
                running = asyncio.create_task(migrate(url, folder))
                waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'virtualxid' AND query LIKE 'CREATE%'"
                waited_since = (
                    "SELECT count(*) FROM pg_locks WHERE NOT granted AND waitstart < now() - interval '0.2 s'"
                )
                while not (await watcher.fetchval(waits) and await watcher.fetchval(waited_since)):
                    assert not running.done()
                    await asyncio.sleep(0.02)
            assert await running == ["0002_index"]
    finally:
        await watcher.close()

"""The stack as tests use it: real servers, in a folder with a space in its name."""

import asyncio
import contextlib
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from infra.local import stack as stack_module
from infra.local.account import data_folder, is_root
from infra.local.errors import LauncherError
from infra.local.part import State
from infra.local.postgres_replica import PostgresReplica
from infra.local.stack import Stack

# Not started where a test is about something else: it takes longer than all the others together.
NO_KAFKA = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A primary with two readers and one for analytics, and both Redis servers."""
    root = tmp_path_factory.mktemp("a folder") / "a stack"
    stack = Stack(root, environ=NO_KAFKA, services=(), replicas=2, analytics=True)
    try:
        async with stack:
            yield stack
    finally:
        stack.remove()


async def fetch(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def eventually(url: str, query: str, wanted: object) -> None:
    """Wait for a replica to have replayed something."""
    async with asyncio.timeout(10):
        while True:
            try:
                if await fetch(url, query) == wanted:
                    return
            except asyncpg.UndefinedTableError:
                pass
            await asyncio.sleep(0.05)


async def test_replicas_stream_from_the_primary_and_take_no_writes(small: Stack) -> None:
    connection = await asyncpg.connect(small.tickets_database_url)
    await connection.execute("CREATE TABLE streamed AS SELECT 42 AS answer")
    await connection.close()
    for url in [*small.replica_urls, small.analytics_url]:
        await eventually(url, "SELECT answer FROM streamed", 42)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await fetch(url, "DELETE FROM streamed")


async def test_the_owner_role_is_what_the_migrations_need_and_not_more(small: Stack) -> None:
    query = "SELECT (rolcreaterole, rolsuper, rolbypassrls)::text FROM pg_roles WHERE rolname = current_user"
    assert await fetch(small.tickets_database_url, query) == "(t,f,f)"
    for extension in ("pg_trgm", "unaccent", "btree_gin"):
        await fetch(small.search_database_url, f"CREATE EXTENSION {extension}")


async def test_a_wrong_password_opens_nothing(small: Stack) -> None:
    wrong = small.tickets_database_url.replace(small.credentials.postgres_owner, "wrong")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)
    for url in (small.redis_url, small.cache_redis_url):
        async with Redis.from_url(url.replace(url.split(":")[2].split("@")[0], "wrong")) as client:
            with pytest.raises(AuthenticationError):
                await client.ping()


async def test_one_redis_keeps_everything_and_the_other_may_forget(small: Stack) -> None:
    wanted = {small.redis_url: ("noeviction", "yes"), small.cache_redis_url: ("allkeys-lfu", "no")}
    for url, (policy, append_only) in wanted.items():
        async with Redis.from_url(url, decode_responses=True) as client:
            settings = await client.config_get("maxmemory-policy", "appendonly")
        assert settings == {"maxmemory-policy": policy, "appendonly": append_only}


async def test_a_killed_part_stays_down_until_it_is_restarted_and_keeps_its_data(small: Stack) -> None:
    async with Redis.from_url(small.redis_url) as client:
        await client.set("kept", "yes")
        await asyncio.sleep(1.1)  # appendfsync everysec; a kill loses nothing that was written, but be exact
    for name in ("redis", "postgres"):
        small.kill(name)
        await small.wait_until_dead(name)
        assert not small.parts[name].alive
        await small.restart(name)
        assert small.parts[name].state is State.READY
    async with Redis.from_url(small.redis_url) as client:
        assert await client.get("kept") == b"yes"
    assert await fetch(small.tickets_database_url, "SELECT 1") == 1


async def test_a_frozen_part_accepts_connections_and_does_not_answer(small: Stack) -> None:
    small.pause("postgres")
    try:
        with pytest.raises(TimeoutError):
            await asyncpg.connect(small.tickets_database_url, timeout=0.5)
    finally:
        small.resume("postgres")
    assert await fetch(small.tickets_database_url, "SELECT 1") == 1


async def test_databases_can_be_made_and_dropped_while_somebody_uses_them(small: Stack) -> None:
    url = await small.primary.create_database("tickets_extra")
    user = await asyncpg.connect(url)
    await small.primary.drop_database("tickets_extra")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(url)
    user.terminate()


async def test_two_stacks_live_side_by_side(small: Stack, tmp_path: Path) -> None:
    other = Stack(tmp_path / "other", environ=NO_KAFKA, services=(), replicas=0)
    try:
        async with other:
            assert await fetch(other.tickets_database_url, "SELECT to_regclass('streamed')::text") is None
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(
                    small.tickets_database_url.replace(
                        str(small.ports["POSTGRES_PORT"]), str(other.ports["POSTGRES_PORT"])
                    )
                )
    finally:
        other.remove()
    assert await fetch(small.tickets_database_url, "SELECT 1") == 1


async def test_a_second_stack_in_the_same_folder_is_refused_and_harms_nothing(small: Stack) -> None:
    with pytest.raises(LauncherError, match="A stack already runs in"):
        await Stack(small.root, environ=NO_KAFKA, services=()).start()
    assert await fetch(small.tickets_database_url, "SELECT 1") == 1
    assert (small.root / "run.json").exists()


async def test_external_addresses_are_used_and_nothing_is_started(small: Stack, tmp_path: Path) -> None:
    environ = NO_KAFKA | {
        "TICKETS_DATABASE_URL": small.tickets_database_url,
        "TICKETS_REPLICA_URLS": ",".join(small.replica_urls),
        "SEARCH_DATABASE_URL": small.search_database_url,
        "REDIS_URL": small.redis_url,
        "CACHE_REDIS_URL": small.cache_redis_url,
    }
    async with Stack(tmp_path / "borrower", environ=environ, services=()) as borrower:
        assert borrower.parts == {}
        assert small.credentials.postgres_owner not in str(borrower.external)
        settings = borrower.environment("tickets") | borrower.environment("gateway")
        for name in ("TICKETS_DATABASE_URL", "TICKETS_REPLICA_URLS", "REDIS_URL", "CACHE_REDIS_URL"):
            assert settings[name] == environ[name]
        assert await fetch(borrower.tickets_database_url, "SELECT 1") == 1


async def produce_and_consume(stack: Stack, topic: str, value: bytes | None) -> list[bytes]:
    if value is not None:
        producer = AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap_servers)
        async with producer:
            await producer.send_and_wait(topic, value)
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=stack.kafka_bootstrap_servers, auto_offset_reset="earliest")
    async with consumer:
        return [(await asyncio.wait_for(consumer.getone(), 10)).value]


async def test_a_second_start_on_other_ports_keeps_all_data(tmp_path: Path) -> None:
    root = tmp_path / "a stack"
    try:
        async with Stack(root, services=()) as first:
            connection = await asyncpg.connect(first.tickets_database_url)
            await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            await connection.close()
            async with Redis.from_url(first.redis_url) as client:
                await client.set("kept", "yes")
            admin = AIOKafkaAdminClient(bootstrap_servers=first.kafka_bootstrap_servers)
            await admin.start()
            await admin.create_topics([NewTopic("kept", 1, 1)])
            await admin.close()
            assert await produce_and_consume(first, "kept", b"42") == [b"42"]
        assert not any(part.alive for part in first.parts.values())

        async with Stack(root, services=()) as second:
            assert not set(first.ports.values()) & set(second.ports.values())
            await eventually(second.replica_urls[0], "SELECT answer FROM kept", 42)
            connection = await asyncpg.connect(second.tickets_database_url)
            await connection.execute("UPDATE kept SET answer = 43")
            await connection.close()
            await eventually(second.replica_urls[0], "SELECT answer FROM kept", 43)
            async with Redis.from_url(second.redis_url) as client:
                assert await client.get("kept") == b"yes"
            assert await produce_and_consume(second, "kept", None) == [b"42"]
            # A broker that was killed is taken back at once, not when its old session times out.
            second.kill("kafka")
            await second.wait_until_dead("kafka")
            async with asyncio.timeout(8):
                await second.restart("kafka")
            assert await produce_and_consume(second, "kept", None) == [b"42"]
    finally:
        second.remove()
    assert not root.exists()


async def test_an_interrupted_start_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    root = tmp_path / "a stack"
    preparing = asyncio.Event()

    def watch(part: object) -> None:
        if getattr(part, "name", "") == "replica-1":
            preparing.set()

    try:
        interrupted = Stack(root, environ=NO_KAFKA, services=(), watcher=watch)
        start = asyncio.create_task(interrupted.start())
        await preparing.wait()  # the primary runs, the replica is being copied
        await asyncio.sleep(0.05)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert not any(part.alive for part in interrupted.parts.values())
        async with Stack(root, environ=NO_KAFKA, services=()) as stack:
            assert await fetch(stack.replica_urls[0], "SELECT pg_is_in_recovery()") is True
    finally:
        interrupted.remove()


async def test_a_replica_whose_slot_is_gone_is_copied_anew(small: Stack) -> None:
    replica = small.parts["replica-2"]
    await replica.stop()
    admin = await small.primary.connect()
    await admin.execute("SELECT pg_drop_replication_slot('replica_2')")
    await admin.close()
    await replica.start()
    assert isinstance(replica, PostgresReplica)
    await eventually(replica.url(superuser=True), "SELECT status FROM pg_stat_wal_receiver", "streaming")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        stack_module.remove_stack(folder / "a stack")
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


@pytest.mark.skipif(not is_root(), reason="an ordinary user's data lies in the stack's folder")
async def test_data_of_a_stack_whose_folder_is_gone_is_removed_by_the_next_one(tmp_path: Path) -> None:
    lost, other = tmp_path / "lost", tmp_path / "other"
    async with Stack(lost, environ=NO_KAFKA, services=(), replicas=0):
        pass
    data = data_folder(lost)
    assert (data / "postgres/PG_VERSION").exists()
    shutil.rmtree(lost)
    next_one = Stack(other, environ=NO_KAFKA, services=(), replicas=0)
    async with next_one:
        assert not data.exists()
    next_one.remove()
    assert not data_folder(other).exists()


@pytest.mark.skipif(not is_root(), reason="needs root to mount a small file system")
async def test_a_full_disk_is_one_sentence(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = small_disk / "a stack"
    with pytest.raises(LauncherError, match=r"is full: \d MB are free"):
        await Stack(root, services=(), replicas=0).start()
    # And when it fills up after that check:
    monkeypatch.setattr(stack_module, "LEAST_FREE_MEGABYTES", 0)
    stack = Stack(root, services=(), replicas=0)
    fill(small_disk)
    with pytest.raises(LauncherError, match="disk is full"):
        await stack.start()
    assert not any(part.alive for part in stack.parts.values())
    (root / "credentials.json").unlink()
    fill(small_disk)
    with pytest.raises(LauncherError, match="disk is full"):
        Stack(root)


async def test_a_signal_reaches_only_the_part_it_was_meant_for(small: Stack) -> None:
    others = {name: part.process for name, part in small.parts.items() if name != "cache-redis"}
    small.kill("cache-redis", signal.SIGTERM)
    await small.wait_until_dead("cache-redis")
    await small.restart("cache-redis")
    await asyncio.sleep(0.5)  # time for a signal that went astray to do its work
    assert all(process is not None and process.alive for process in others.values())

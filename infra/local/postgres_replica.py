"""PostgreSQL: a replica that streams from the primary, and may become one."""

from pathlib import Path

from infra.local.credentials import Credentials
from infra.local.ports import HOST
from infra.local.postgres import REPLICATION_ROLE, PostgresPrimary, PostgresServer
from infra.local.process import run
from infra.local.storage import write_private

# A slot whose replica has no data is left over from a copy that was interrupted.
DROP_SLOT = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active"
CREATE_SLOT = "SELECT pg_create_physical_replication_slot($1)"
PROMOTE = "SELECT pg_promote()"
SLOT_IS_LOST = """
SELECT NOT EXISTS
  (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND wal_status IS DISTINCT FROM 'lost')
"""


class PostgresReplica(PostgresServer):
    """A hot standby that streams from the primary through a replication slot of its own."""

    def __init__(
        self,
        name: str,
        port: int,
        port_variable: str,
        *,
        root: Path,
        log: Path,
        credentials: Credentials,
        primary: PostgresPrimary,
    ) -> None:
        super().__init__(name, port, port_variable, root=root, log=log, credentials=credentials)
        self.prepared_after = [primary.name]
        self._primary: PostgresServer = primary
        self._slot = name.replace("-", "_")

    async def prepare(self) -> None:
        await super().prepare()
        installed = self.installation
        write_private(self._password_file, f"{HOST}:*:*:{REPLICATION_ROLE}:{self.credentials.postgres_replication}\n")
        installed.own(self._password_file)
        complete = (self.data / "PG_VERSION").exists()
        if complete and not await self._slot_is_lost():
            return
        self._discard(self.data)
        unfinished = installed.data / f"{self.name}.new"
        self._discard(unfinished)
        await self._drop_slot()
        command = installed.command(
            "pg_basebackup",
            "--pgdata",
            unfinished,
            "--dbname",
            self._primary_address,
            "--write-recovery-conf",
            "--create-slot",
            "--slot",
            self._slot,
            "--checkpoint",
            "fast",
            log=self.log,
        )
        try:
            await run(command, "Copying the primary to a replica")
            unfinished.rename(self.data)
        finally:
            self._discard(unfinished)

    async def promote(self) -> None:
        """Make it a primary on a timeline of its own."""
        connection = await self.connect()
        try:
            await connection.execute(PROMOTE)
        finally:
            await connection.close()

    async def follow(self, primary: PostgresServer) -> None:
        """Stream from another server from now on, from where it is; restarts."""
        connection = await primary.connect()
        try:
            await connection.execute(CREATE_SLOT, self._slot)
        finally:
            await connection.close()
        self._primary = primary
        await self.stop()
        await self.start()

    def more_settings(self) -> dict[str, str]:
        # Beats what pg_basebackup wrote: the primary's port may have changed since.
        return {"primary_conninfo": self._primary_address, "primary_slot_name": self._slot}

    @property
    def _password_file(self) -> Path:
        return self.installation.data / f"{self.name}-password"

    @property
    def _primary_address(self) -> str:
        path = str(self._password_file).replace("\\", "\\\\").replace("'", "\\'")
        return (
            f"host={HOST} port={self._primary.port} user={REPLICATION_ROLE} "
            f"application_name={self.name} passfile='{path}'"
        )

    async def _slot_is_lost(self) -> bool:
        """Whether the primary has thrown away what this replica still needs."""
        if not self._primary.alive:
            return False
        connection = await self._primary.connect()
        try:
            return bool(await connection.fetchval(SLOT_IS_LOST, self._slot))
        finally:
            await connection.close()

    async def _drop_slot(self) -> None:
        connection = await self._primary.connect()
        try:
            await connection.execute(DROP_SLOT, self._slot)
        finally:
            await connection.close()

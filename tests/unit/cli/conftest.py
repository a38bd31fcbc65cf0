"""The command run as a user runs it, against a stand-in of the public API.

What is tested here is the command line's own part; the same commands meet the real platform in tests/e2e.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from aiohttp.test_utils import TestServer

from cli import app as command
from tests.unit.cli.stand_in import KEY, StandIn


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Coroutine[Any, Any, Result]]


@pytest.fixture(autouse=True)
def _nobodys_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RELAYDESK_URL", raising=False)
    monkeypatch.delenv("RELAYDESK_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def platform() -> AsyncIterator[StandIn]:
    stand_in = StandIn()
    async with TestServer(stand_in.app) as server:
        stand_in.url = str(server.make_url("/")).rstrip("/")
        yield stand_in


async def started(platform: StandIn, *arguments: object) -> asyncio.subprocess.Process:
    """Start `relaydesk ARGUMENTS` as a process of its own, which heeds SIGINT even where this one does not."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from cli.start import main; main()", *map(str, arguments)),
        env={**os.environ, "RELAYDESK_URL": platform.url, "RELAYDESK_API_KEY": KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` leaves it ignored
    )


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `relaydesk ARGUMENTS` in a thread, as the test's own loop serves the stand-in."""

    def blocking(arguments: tuple[str, ...]) -> int:
        with mock.patch.object(sys, "argv", ["relaydesk", *arguments]), pytest.raises(SystemExit) as end:
            command.main()
        return int(end.value.code or 0)

    async def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = await asyncio.to_thread(blocking, tuple(map(str, arguments)))
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return run


@pytest.fixture
def import_file(run: Run, platform: StandIn) -> Run:
    async def import_file(*arguments: object) -> Result:
        return await run("import", "--organization", "acme", "--url", platform.url, "--api-key", KEY, *arguments)

    return import_file

"""The frame of a service as a process: how it starts, refuses to start, and stops."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from infra.local.stack import Stack
from tests.support.processes import running_service
from tests.support.tickets import TicketsDatabase, tickets_database

SLOW = Path(__file__).with_name("slow_service.py")


async def test_sigterm_first_says_not_ready_and_then_finishes_what_is_in_flight(stack: Stack, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with (
        running_service(stack, "notifier", log, script=(str(SLOW),), DRAIN_SECONDS="1") as service,
        aiohttp.ClientSession(service.url) as session,
    ):
        before = asyncio.create_task(_slow(session))
        while (await _text(session, "/started")) != "1":
            await asyncio.sleep(0.01)
        service.kill(signal.SIGTERM)
        while await _status(session, "/readyz") != 503:
            await asyncio.sleep(0.01)
        assert await _status(session, "/livez") == 200
        during = asyncio.create_task(_slow(session))  # while it drains it still accepts
        assert await before == "done"
        assert await during == "done"
        assert service.process is not None
        assert await service.process.wait() == 0
        with pytest.raises(aiohttp.ClientConnectionError):
            await _status(session, "/livez")


async def _slow(session: aiohttp.ClientSession) -> str:
    return await _text(session, "/slow")


async def _text(session: aiohttp.ClientSession, path: str) -> str:
    async with session.get(path) as answer:
        return await answer.text()


async def _status(session: aiohttp.ClientSession, path: str) -> int:
    async with session.get(path) as answer:
        return answer.status


async def run(environment: dict[str, str], *arguments: str, seconds: float = 30) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.tickets", *arguments),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), seconds)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def environment(stack: Stack) -> dict[str, str]:
    return stack.environment("tickets") | {"TICKETS_REPLICA_URLS": "", "TICKETS_RELAY_EMBEDDED": "false"}


async def test_a_busy_port_is_told_in_a_sentence(stack: Stack, tmp_path: Path) -> None:
    async with tickets_database(stack) as database, _listening() as port:
        settings = database.environment | {"TICKETS_HOST": "127.0.0.1", "TICKETS_PORT": str(port)}
        code, _out, err = await run(settings, "serve")
    assert code == 1
    assert err.startswith(f"tickets cannot listen on 127.0.0.1:{port}: ")
    assert err.endswith("address already in use\n")


class _listening:  # noqa: N801
    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()


async def test_a_key_that_cannot_be_read_is_told_in_a_sentence(environment: dict[str, str]) -> None:
    code, _out, err = await run(environment | {"INTERNAL_TRUSTED_KEYS": "{}"}, "serve")
    assert code == 1
    assert err.count("\n") == 1
    assert "INTERNAL_TRUSTED_KEYS" in err


async def test_a_service_that_waits_for_its_database_can_be_stopped(environment: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.tickets", "serve"),
        env={**os.environ, **environment, "TICKETS_DATABASE_URL": "postgresql://u:p@127.0.0.1:1/none"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    while b"waiting" not in await process.stdout.readline():
        pass
    process.terminate()
    await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0


async def test_commands_tell_in_a_sentence_what_is_wrong(stack: Stack) -> None:
    away = {"TICKETS_DATABASE_URL": "postgresql://u:p@127.0.0.1:1/none"}
    wrong = stack.primary.url("tickets").replace(stack.credentials.postgres_owner, "wrong")
    for settings in (away, {"TICKETS_DATABASE_URL": wrong}):
        code, _out, err = await run(settings, "migrate")
        assert code == 3
        assert "Traceback" not in err
        assert "failed" in err
    code, _out, err = await run({"TICKETS_DATABASE_URL": "x", "TICKETS_HSOT": "y"}, "migrate")
    assert code == 2
    assert "TICKETS_DATABASE_URL is not valid" in err
    assert "did you mean TICKETS_HOST?" in err


async def test_an_organization_is_provisioned_once(stack: Stack) -> None:
    async with tickets_database(stack) as database:
        arguments = ("--organization", "acme", "--name", "Acme", "--user", "ada@acme.example:admin")
        code, out, _err = await run(database.environment, "provision", *arguments)
        assert code == 0
        assert out.count("\n") == 1
        before = await database.counts()
        assert (before["organizations"], before["users"], before["api_keys"]) == (1, 1, 1)
        code, out, err = await run(database.environment, "provision", *arguments)
        assert (code, out) == (4, "")
        assert "acme" in err
        assert await _refused(database, "Not A Slug", "ada@acme.example:admin") == 3
        assert await _refused(database, "other", "a@b:admin", "--user", "a@b:agent") == 3
        assert await _refused(database, "other", "a@b:owner") == 2
        assert await database.counts() == before


async def _refused(database: TicketsDatabase, slug: str, *users: str) -> int:
    arguments = ("provision", "--organization", slug, "--name", "N", "--user", *users)
    code, out, err = await run(database.environment, *arguments)
    assert out == ""
    assert "Traceback" not in err
    return code

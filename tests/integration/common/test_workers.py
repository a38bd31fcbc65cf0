"""A group of processes at one port: how it shares the work, loses a member, and ends."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from infra.local.ports import HOST, free_ports
from libs.common import serving
from libs.common.connections import Runner
from tests.support.tickets import eventually

CHECKOUT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("group_service.py")
PROCESSES = 3


class Group:
    """One run of group_service.py."""

    def __init__(self, folder: Path) -> None:
        self.trouble = folder / "trouble"
        self.log = folder / "log"
        (self.port,) = free_ports(1)
        self.process: asyncio.subprocess.Process

    @property
    def metrics(self) -> int:
        return self.port + 100

    async def start(self, **environment: str) -> None:
        own = {"TROUBLE": str(self.trouble), "METRICS": str(self.metrics), "NOTIFIER_PORT": str(self.port)}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(SCRIPT)),
                env={**os.environ, "PYTHONPATH": str(CHECKOUT), "DRAIN_SECONDS": "1", **own, **environment},
                stdout=log,
                stderr=asyncio.subprocess.PIPE,
            )

    async def until_ready(self) -> None:
        for number in range(PROCESSES):
            await eventually(lambda port=self.metrics + number: answers(port, "/readyz"))

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def records(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    async def ended(self) -> tuple[int, str]:
        """The exit code and what was written to standard error."""
        _out, err = await asyncio.wait_for(self.process.communicate(), 60)
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()


async def answers(port: int, path: str, status: int = 200) -> bool:
    with contextlib.suppress(aiohttp.ClientError):
        return (await get(port, path))[0] == status
    return False


async def get(port: int, path: str) -> tuple[int, str]:
    """On a connection of its own."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{HOST}:{port}{path}") as answer:
        return answer.status, await answer.text()


@pytest_asyncio.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    group = Group(tmp_path)
    await group.start()
    try:
        await group.until_ready()
        yield group
    finally:
        if group.process.returncode is None:
            group.process.kill()
        await group.process.wait()


async def test_workers_share_the_port_and_each_has_one_for_its_metrics(group: Group) -> None:
    seen: set[str] = set()

    async def all_have_answered() -> bool:
        seen.add((await get(group.port, "/who"))[1])
        return len(seen) == PROCESSES

    await eventually(all_have_answered)
    assert seen == {str(pid) for pid in group.workers()}
    for number in range(PROCESSES):
        status, text = await get(group.metrics + number, "/metrics")
        assert status == 200
        assert "event_loop_lag_seconds" in text
        assert (await get(group.metrics + number, "/livez"))[0] == 200
    assert {record["worker"] for record in group.records("started")} == set(range(PROCESSES))
    await eventually(lambda: _logged_by_all(group))


async def _logged_by_all(group: Group) -> bool:
    return {record["worker"] for record in group.records("request")} == set(range(PROCESSES))


async def test_a_second_group_at_the_same_port_is_refused_in_a_sentence(group: Group, tmp_path: Path) -> None:
    second = Group(tmp_path)
    second.port = group.port
    await second.start()
    code, err = await second.ended()
    assert code == 1
    assert err == f"group cannot listen on 127.0.0.1:{group.port}: Address already in use\n"
    assert (await get(group.port, "/who"))[0] == 200


async def test_who_waits_for_a_worker_that_is_killed_is_answered_by_the_next(group: Group) -> None:
    """A listening socket that is closed resets the connections in its queue; the parent keeps it open."""
    before = group.workers()
    victim = min(before)
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    asked = [asyncio.create_task(_ask_who(group.port)) for _ in range(90)]
    await eventually(lambda: _established(group.port, 90))
    os.kill(victim, signal.SIGKILL)
    for pid in before - {victim}:
        os.kill(pid, signal.SIGCONT)
    told = await asyncio.wait_for(asyncio.gather(*asked), 60)
    new = group.workers() - before
    assert len(new) == 1
    assert set(map(int, told)) == (before - {victim}) | new
    (death,) = group.records("worker_ended")
    assert (death["pid"], death["how"]) == (victim, "by SIGKILL")


async def _ask_who(port: int) -> str:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    assert " 200 OK" in text
    return text.rpartition("\r\n\r\n")[2]


async def _established(port: int, count: int) -> bool:
    """Whether so many connections of this process to the port are there."""
    found = psutil.Process().net_connections("tcp")
    to_port = [c for c in found if c.raddr and c.raddr.port == port and c.status == psutil.CONN_ESTABLISHED]
    return len(to_port) == count


async def test_sigterm_drains_every_worker(group: Group) -> None:
    slow = [asyncio.create_task(get(group.port, "/slow")) for _ in range(30)]
    await eventually(lambda: _established(group.port, 30))
    group.process.terminate()
    for number in range(PROCESSES):
        await eventually(lambda port=group.metrics + number: answers(port, "/readyz", 503))
    async with aiohttp.ClientSession() as session, session.get(f"http://{HOST}:{group.port}/who") as answer:
        assert answer.status == 200, "it still accepts"
        assert answer.headers["Connection"] == "close"
    assert await asyncio.gather(*slow) == [(200, "done")] * 30
    assert await group.ended() == (0, "")
    assert {record.get("worker") for record in group.records("stopped")} == {None, *range(PROCESSES)}
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(group.port, "/who")


async def test_a_connection_that_was_made_at_the_last_moment_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port is closed, and its request is still on the way."""
    monkeypatch.setattr(serving, "_LAST_SECONDS", 30.0)
    (port,) = free_ports(1)
    runner = Runner(web.Application())
    await runner.setup()
    site = web.TCPSite(runner, HOST, port)
    await site.start()
    reader, writer = await asyncio.open_connection(HOST, port)

    async def go() -> None:
        await serving._drain(runner, [site], 3.0)
        await runner.cleanup()

    going = asyncio.create_task(go())
    await eventually(lambda: _refused(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = (await asyncio.wait_for(reader.read(), 30)).decode()
    assert answer.startswith("HTTP/1.1 404")
    assert "Connection: close" in answer
    writer.close()
    await going


async def _refused(port: int) -> bool:
    try:
        _reader, writer = await asyncio.open_connection(HOST, port)
    except ConnectionError:  # also a reset: it waited to be accepted when the port was closed
        return True
    writer.close()
    return False


async def test_workers_do_not_outlive_their_parent(group: Group) -> None:
    workers = group.workers()
    os.kill(min(workers), signal.SIGSTOP)  # not even one that hangs
    group.process.kill()
    await eventually(lambda: _gone(workers))
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(group.port, "/who")


async def _gone(pids: set[int]) -> bool:
    return not any(map(psutil.pid_exists, pids))


async def test_what_keeps_workers_from_starting_is_told_once(tmp_path: Path) -> None:
    group = Group(tmp_path)
    group.trouble.write_text("no start")
    await group.start()
    assert await group.ended() == (1, "group cannot start: ValueError('no signing key')\n")


async def test_a_group_whose_workers_die_again_and_again_gives_up(group: Group) -> None:
    group.trouble.write_text("crash")
    victim = min(group.workers())
    os.kill(victim, signal.SIGKILL)
    code, err = await group.ended()
    assert code == 1
    assert "gives up: worker" in err
    assert err.endswith("times in a row, the last time by SIGSEGV\n")
    assert len({record["worker"] for record in group.records("worker_ended")}) == 1, "only the one that was killed"
    pauses = [record["restart_in_seconds"] for record in group.records("worker_ended")]
    assert pauses == sorted(pauses)
    assert len(set(pauses)) == len(pauses)


async def test_a_worker_that_cannot_start_again_does_not_end_the_others_at_once(group: Group) -> None:
    group.trouble.write_text("no start")
    victim = min(group.workers())
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: _deaths(group, 2))
    group.trouble.unlink()

    async def complete() -> bool:
        return len(group.workers()) == PROCESSES and all(
            [await answers(group.metrics + number, "/readyz") for number in range(PROCESSES)]
        )

    await eventually(complete)


async def _deaths(group: Group, count: int) -> bool:
    return len(group.records("worker_ended")) >= count

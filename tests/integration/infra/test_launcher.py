"""`python -m infra.local` as somebody types it: signals, sentences, exit codes, and nothing left behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.local.account import data_folder, is_root
from infra.local.ports import HOST, any_free
from infra.local.stack import remove_stack

CHECKOUT = Path(__file__).resolve().parents[3]
PATIENCE_SECONDS = 120


class Launcher:
    """The command line, with a folder and ports of its own; Kafka is external unless a test wants it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ports = any_free()
        self.pid = 0
        self.environ = os.environ | {name: str(port) for name, port in self.ports.items()}
        self.environ["KAFKA_BOOTSTRAP_SERVERS"] = "127.0.0.1:1"
        self._output = root.parent / "output"
        self._started: list[subprocess.Popen[bytes]] = []

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "infra.local", "--root", str(self.root), *arguments]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments),
            cwd=CHECKOUT,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )

    def begin(self) -> subprocess.Popen[bytes]:
        with self._output.open("wb") as output:
            started = subprocess.Popen(
                self.argv("up", "--servers-only"),
                cwd=CHECKOUT,
                env=self.environ,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._started.append(started)
        self.pid = started.pid
        return started

    def up(self) -> subprocess.Popen[bytes]:
        started = self.begin()
        self.wait_for(lambda: "The servers are ready" in self.output() or started.poll() is not None)
        assert started.poll() is None, self.output()
        return started

    def output(self) -> str:
        return self._output.read_text()

    def parts(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.root / "run.json").read_text())
        return dict(content["parts"])

    def processes(self) -> list[psutil.Process]:
        """All processes of the parts, their children included."""
        found = []
        for part in self.parts().values():
            with contextlib.suppress(psutil.NoSuchProcess, TypeError):
                process = psutil.Process(part["pid"])
                found += [process, *process.children(recursive=True)]
        return found

    def left(self) -> list[psutil.Process]:
        """Processes that work in a folder of this stack, whoever started them."""
        folders = (str(self.root), str(data_folder(self.root)))
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd().startswith(folders):
                    found.append(process)
        return found

    def wait_for(self, check: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not check():
            assert time.monotonic() < deadline, f"{self.output()}left: {self.left()}"
            time.sleep(0.05)

    def close(self) -> None:
        for started in self._started:
            if started.poll() is None:
                started.terminate()
                started.wait()
        remove_stack(self.root)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path / "a folder" / "with spaces")
    launcher.root.parent.mkdir()
    try:
        yield launcher
    finally:
        launcher.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """A stack that runs, for tests that leave it running."""
    launcher = Launcher(tmp_path_factory.mktemp("a folder") / "with spaces")
    try:
        launcher.up()
        yield launcher
    finally:
        launcher.close()


def gone(processes: list[psutil.Process]) -> bool:
    return not [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """What went wrong; asserts that it was said as it should be."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_everything_in_order(launcher: Launcher, number: signal.Signals) -> None:
    started = launcher.up()
    processes = launcher.processes()
    assert len(processes) > 10  # PostgreSQL alone has that many
    started.send_signal(number)
    assert started.wait(PATIENCE_SECONDS) == 0, launcher.output()
    assert gone(processes)
    lines = launcher.output().splitlines()
    assert lines.index("replica-1: stopped") < lines.index("postgres: stopping")
    assert "shut down" in (launcher.root / "logs/postgres.log").read_text().splitlines()[-1]
    assert not (launcher.root / "run.json").exists()


def test_nothing_outlives_a_launcher_that_was_killed_and_the_next_start_succeeds(launcher: Launcher) -> None:
    del launcher.environ["KAFKA_BOOTSTRAP_SERVERS"]
    started = launcher.up()
    processes = launcher.processes()
    names = {process.name() for process in processes}
    assert {"postgres", "java", "redis-server"} <= names
    started.kill()
    started.wait()
    launcher.wait_for(lambda: gone(processes))
    launcher.up()


def test_a_launcher_that_is_killed_while_it_starts_leaves_nothing(launcher: Launcher) -> None:
    started = launcher.begin()
    launcher.wait_for(lambda: "postgres: starting" in launcher.output())
    assert launcher.left()
    started.kill()
    started.wait()
    launcher.wait_for(lambda: not launcher.left())


def test_frozen_parts_that_outlived_their_launcher_are_ended_by_the_next_start(launcher: Launcher) -> None:
    started = launcher.up()
    processes = launcher.processes()
    frozen = psutil.Process(launcher.parts()["postgres"]["pid"])
    frozen.suspend()  # first: it would go on to make processes, and see others end
    for process in frozen.children(recursive=True):
        process.suspend()
    started.kill()
    started.wait()
    time.sleep(0.5)
    assert frozen.is_running()
    assert launcher.call("status").returncode == 3
    launcher.up()
    assert gone(processes)


def test_a_busy_port_is_one_sentence_and_leaves_nothing(launcher: Launcher) -> None:
    with socket.socket() as holder:
        holder.bind((HOST, launcher.ports["REDIS_PORT"]))
        holder.listen()
        sentence = one_sentence(launcher.call("up", "--servers-only"))
        assert f"Port {launcher.ports['REDIS_PORT']}, which redis needs, is in use by" in sentence
        assert "REDIS_PORT=" in sentence
    assert not launcher.left()


def test_a_server_that_cannot_start_is_one_sentence_with_its_log(launcher: Launcher) -> None:
    launcher.up().terminate()
    launcher.wait_for(lambda: "Stopped in" in launcher.output())
    (launcher.root / "redis/appendonlydir/appendonly.aof.manifest").write_text("nonsense")
    sentence = one_sentence(launcher.call("up", "--servers-only"))
    assert "redis ended while it was starting" in sentence
    assert str(launcher.root / "logs/redis.log") in sentence


def test_a_second_launcher_in_the_same_folder_is_one_sentence(running: Launcher) -> None:
    assert f"(pid {running.pid})" in one_sentence(running.call("up"))
    assert running.call("status").returncode == 0


@pytest.mark.skipif(is_root(), reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(launcher: Launcher) -> None:
    launcher.root.parent.chmod(0o500)
    try:
        assert "Not allowed to write" in one_sentence(launcher.call("up"))
    finally:
        launcher.root.parent.chmod(0o700)


def test_a_file_where_the_folder_should_be_is_one_sentence(launcher: Launcher) -> None:
    launcher.root.write_text("")
    assert "Could not write to" in one_sentence(launcher.call("up"))
    launcher.root.unlink()


def test_a_crashed_server_is_named_and_started_again(running: Launcher) -> None:
    pid = running.parts()["redis"]["pid"]
    os.kill(pid, signal.SIGKILL)
    running.wait_for(lambda: "redis is ready again." in running.output())
    said = next(line for line in running.output().splitlines() if line.startswith("redis ended"))
    assert "signal SIGKILL" in said
    assert str(running.root / "logs/redis.log") in said
    assert running.parts()["redis"]["pid"] != pid


def test_a_server_that_crashes_again_and_again_ends_the_stack(launcher: Launcher) -> None:
    started = launcher.up()
    processes = launcher.processes()
    (launcher.root / "redis/appendonlydir/appendonly.aof.manifest").write_text("nonsense")
    os.kill(launcher.parts()["redis"]["pid"], signal.SIGKILL)
    assert started.wait(PATIENCE_SECONDS) == 1
    assert "times in a row" in launcher.output().splitlines()[-1]
    assert "Traceback" not in launcher.output()
    assert gone(processes)


def test_status_shows_what_runs_and_what_is_external(running: Launcher) -> None:
    shown = running.call("status", "--json")
    assert shown.returncode == 0
    content = json.loads(shown.stdout)
    assert content["running"] is True
    assert content["external"] == {"kafka": "127.0.0.1:1"}
    assert set(content["parts"]) == {"postgres", "replica-1", "redis", "cache-redis"}
    for name, part in content["parts"].items():
        assert part["state"] == "ready", name
        assert psutil.pid_exists(part["pid"])
    assert content["parts"]["postgres"]["port"] == running.ports["POSTGRES_PORT"]
    assert running.call("status").stdout.count("ready") == 4


def test_logs_come_with_the_name_of_their_part(running: Launcher) -> None:
    everything = running.call("logs", "--no-follow").stdout
    assert any(line.startswith("redis ") and "Ready to accept" in line for line in everything.splitlines())
    only = running.call("logs", "--no-follow", "postgres").stdout
    assert only
    assert all(line.startswith("postgres ") for line in only.splitlines())
    assert "there are logs of" in one_sentence(running.call("logs", "--no-follow", "zebra"))


def test_logs_go_on_with_new_lines(running: Launcher) -> None:
    reader = subprocess.Popen(
        running.argv("logs", "cache-redis"),
        cwd=CHECKOUT,
        env=running.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout
    try:
        while "Ready to accept" not in reader.stdout.readline():
            pass
        for word in ("first", "second"):
            with (running.root / "logs/cache-redis.log").open("a") as file:
                file.write(f"{word}\n")
            assert reader.stdout.readline().split() == ["cache-redis", word]
    finally:
        reader.send_signal(signal.SIGINT)
        assert reader.wait(10) == 0


def test_clean_refuses_while_the_stack_runs(running: Launcher) -> None:
    assert "stop it first" in one_sentence(running.call("clean"))
    assert running.call("status").returncode == 0


def test_stop_returns_when_everything_is_gone_and_clean_removes_the_data(launcher: Launcher) -> None:
    assert "There are no logs" in one_sentence(launcher.call("logs", "--no-follow"))
    assert launcher.call("status").returncode == 3
    started = launcher.up()
    processes = launcher.processes()
    assert launcher.call("stop").returncode == 0
    assert gone(processes)
    assert started.wait(1) == 0
    assert "nothing was running" in launcher.call("stop").stdout
    assert launcher.call("status").returncode == 3
    assert launcher.call("clean").returncode == 0
    assert not launcher.root.exists()
    assert not data_folder(launcher.root).exists()

"""Log lines: the form, the order, and when those of requests, which may wait, are written."""

import asyncio
import concurrent.futures
import contextlib
import io
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from libs.common import logs
from libs.common.tracing import ServerSpan
from tests.support.tickets import eventually

ROOT = Path(__file__).parents[3]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z")  # no fraction: once in a million


class Output(io.BytesIO):
    """Remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, text: Any) -> int:
        self.writes.append(bytes(text))
        return super().write(text)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@contextlib.contextmanager
def configured(monkeypatch: pytest.MonkeyPatch, *, level: str = "info", log_format: str = "json") -> Iterator[Output]:
    """Everything is logged to what this yields while the block lasts."""
    root = logging.getLogger()
    before, handlers, root_level = structlog.get_config(), root.handlers[:], root.level
    output = Output()
    stream = io.TextIOWrapper(output, write_through=True)
    at_exit: list[Callable[[], None]] = []
    with monkeypatch.context() as patched:
        patched.setattr(logs, "_requests", object())  # what was configured before
        patched.setattr(logs, "log", structlog.get_logger())  # one that was used before stays as it was configured
        patched.setattr("atexit.register", at_exit.append)
        try:
            logs.configure("test", level=level, log_format=log_format, stream=stream)
            yield output
        finally:
            for flush in at_exit:
                flush()
            structlog.configure(**before)
            structlog.contextvars.unbind_contextvars("service")
            root.handlers[:] = handlers
            root.setLevel(root_level)
            stream.detach()  # which would close what was written


async def test_records_of_all_kinds_are_written_in_the_order_in_which_they_were_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with configured(monkeypatch) as output:
        log, library = structlog.get_logger(), logging.getLogger("a.library")
        for number in range(0, 40, 4):
            logs.request(number=number)
            log.info("ours", number=number + 1)
            logs.request(number=number + 2)
            library.warning("%d", number + 3)
        written = [line.get("number", line["event"]) for line in output.lines]
    assert written == [number if number % 4 < 3 else str(number) for number in range(40)]


async def test_a_request_that_nothing_follows_is_written_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with configured(monkeypatch) as output:
        for number in range(3):  # again and again
            logs.request(number=number)
            assert len(output.writes) == number, "it may wait"

            async def is_written(number: int = number) -> bool:
                return len(output.writes) > number

            await eventually(is_written)
        assert [line["number"] for line in output.lines] == [0, 1, 2]
    assert logs._FLUSH_SECONDS == 0.05, "what is promised"


async def test_two_hundred_requests_are_written_at_once_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with configured(monkeypatch) as output:
        for number in range(199):
            logs.request(number=number)
        assert output.writes == []
        logs.request(number=199)
        assert len(output.writes) == 1
        assert [line["number"] for line in output.lines] == list(range(200))
        logs.request(number=200)

        async def is_written() -> bool:
            return len(output.writes) == 2

        await eventually(is_written)
        assert output.lines[-1]["number"] == 200


@pytest.mark.parametrize("headers", [{}, {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}], ids=["new", "given"])
async def test_a_request_has_the_fields_of_any_record(monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]) -> None:
    fields = {"method": "GET", "status": 200, "duration_ms": 0.25, "text": 'ü"\n', "odd": object, "nothing": None}
    with configured(monkeypatch) as output:
        with ServerSpan("GET", "/", headers) as span:
            logs.request(**fields, trace_id=span.trace_id)
            structlog.get_logger().info("request", **fields)
        request, record = output.lines
    assert TIMESTAMP.fullmatch(request.pop("timestamp"))
    assert TIMESTAMP.fullmatch(record.pop("timestamp"))
    assert request == record
    assert request["trace_id"] == (TRACE_ID if headers else record["trace_id"])
    assert (request["service"], request["level"], request["event"]) == ("test", "info", "request")


async def test_a_record_outside_of_any_request_has_no_trace_id(monkeypatch: pytest.MonkeyPatch) -> None:
    with configured(monkeypatch) as output:
        logs.request()
        structlog.get_logger().info("request")
        logging.getLogger("a.library").warning("request")
        request, record, library = output.lines
    assert request.keys() == record.keys() == library.keys() == {"event", "service", "level", "timestamp"}


@pytest.mark.parametrize(("level", "events"), [("debug", 3), ("info", 3), ("warning", 1), ("error", 0)])
async def test_requests_are_of_level_info(monkeypatch: pytest.MonkeyPatch, level: str, events: int) -> None:
    with configured(monkeypatch, level=level) as output:
        logs.request()
        logging.getLogger("a.library").info("at info")
        structlog.get_logger().warning("at warning")
        at_once = output.lines
        assert len(at_once) == events
    assert output.lines == at_once, "nothing waited"


async def test_people_read_requests_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with configured(monkeypatch, log_format="console") as output:
        logs.request(route="/api/tickets", status=200)
        logging.getLogger("a.library").warning("from a library")
        first, second = output.getvalue().decode().splitlines()
    assert "request" in first
    assert "route=/api/tickets" in first
    assert "service=test" in first
    assert "status=200" in first
    assert "from a library" in second
    assert "\x1b" not in first + second, "colours are for terminals"
    with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
        json.loads(first)


async def test_what_many_threads_log_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, each = 8, 300

    def work(thread: int) -> None:
        for number in range(each):
            log.info("ours", thread=thread, number=number)

    interval = sys.getswitchinterval()
    with configured(monkeypatch) as output, concurrent.futures.ThreadPoolExecutor(threads) as executor:
        log = structlog.get_logger()
        sys.setswitchinterval(1e-6)
        try:
            at_work = [executor.submit(work, thread) for thread in range(threads)]
            requests = 0
            while not all(task.done() for task in at_work) or requests < each:
                logs.request(thread=threads, number=requests)
                requests += 1
                await asyncio.sleep(0)
            for task in at_work:
                task.result()
        finally:
            sys.setswitchinterval(interval)
    written: list[list[int]] = [[] for _ in range(threads + 1)]
    for line in output.lines:
        written[line["thread"]].append(line["number"])
    assert written == [*([list(range(each))] * threads), list(range(requests))]


def test_what_is_written_at_the_same_time_keeps_its_order() -> None:
    class Slow(io.BytesIO):
        """During the first write another thread writes, unless it has to wait."""

        def write(self, text: Any) -> int:
            if not other.ident:
                other.start()
                other.join(0.2)
            return super().write(text)

    stream = Slow()
    lines = logs._Lines(stream)

    def write(line: bytes) -> None:
        lines.write(line)
        lines.flush()

    other = threading.Thread(target=write, args=[b"second"])
    write(b"first ")
    other.join()
    assert stream.getvalue() == b"first second"


PROGRAM = """
import asyncio, sys
from libs.common import logs

async def main():
    for number in range(3):
        logs.request(number=number)
    {end}

logs.configure("test", level="info", log_format="json")
asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "raise ZeroDivisionError"])
def test_the_end_of_the_process_loses_nothing(end: str) -> None:
    program = PROGRAM.format(end=end)
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (ended.returncode == 0) == (end == "pass"), ended.stderr
    assert [json.loads(line)["number"] for line in ended.stdout.splitlines()] == [0, 1, 2], ended.stderr

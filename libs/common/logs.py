"""Structured logs: one JSON object a line on standard output."""

import asyncio
import atexit
import datetime as dt
import logging
import sys
import threading
import time
from typing import Any, BinaryIO, TextIO, cast

import msgspec
import structlog
from opentelemetry import trace

_FLUSH_SECONDS = 0.05
_WAITING_LINES = 200
_encoder = msgspec.json.Encoder(enc_hook=repr)
log = structlog.get_logger()


def _add_trace_id(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event.setdefault("trace_id", f"{context.trace_id:032x}")
    return event


def _encode(event: Any, **_options: Any) -> bytes:
    return _encoder.encode(event)


class _Lines:
    """Where JSON lines are written, by any thread. Lines that may wait are written with the next that may not."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._lines: list[bytes] = []

    def write(self, line: bytes) -> int:
        """Add what `flush` will write; how many wait."""
        with self._lock:
            self._lines.append(line)
            return len(self._lines)

    def flush(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
            if lines:
                self._stream.write(b"".join(lines))
                self._stream.flush()


class _LibraryRecords(logging.StreamHandler[TextIO]):
    """The standard library's records, written after the lines that were logged before them."""

    def __init__(self, stream: TextIO, lines: _Lines) -> None:
        super().__init__(stream)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.flush()
        super().emit(record)


class _Requests:
    """The lines of requests: the same fields as any record at a quarter of its cost, for each request has one.

    They are written within 50 ms, and when 200 wait.
    """

    def __init__(self, service: str, lines: _Lines, worker: int | None) -> None:
        self._own: dict[str, object] = {"event": "request", "service": service, "level": "info"}
        if worker is not None:
            self._own["worker"] = worker
        self._lines = lines
        self._second, self._seconds = 0, ""
        self._flush: asyncio.TimerHandle | None = None

    def write(self, event: dict[str, object]) -> None:
        event |= self._own
        event["timestamp"] = self._now()
        waiting = self._lines.write(_encode(event) + b"\n")
        if waiting >= _WAITING_LINES:
            self._write_now()
        elif self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._write_now)

    def _now(self) -> str:
        """The time (RFC 3339); its seconds are written out once a second."""
        second, microsecond = divmod(time.time_ns() // 1000, 1_000_000)
        if second != self._second:
            self._second = second
            self._seconds = dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._seconds}.{microsecond:06}Z"

    def _write_now(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        self._lines.flush()


_requests: _Requests | None = None


def request(**fields: object) -> None:
    """Log a request that was answered, at level `info`."""
    if _requests is not None:
        _requests.write(fields)
    else:
        log.info("request", **fields)


def configure(
    service: str, *, level: str, log_format: str, stream: TextIO = sys.stdout, worker: int | None = None
) -> None:
    """Send structlog's and the standard library's records to `stream` in one form.

    `log_format` is `json` for machines or `console` for people; `worker` is the process's number in its group.
    """
    global _requests  # noqa: PLW0603 (as the rest of what is configured here: one a process)
    _requests = None
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_id,
    ]
    logger_factory: structlog.BytesLoggerFactory | structlog.PrintLoggerFactory
    if log_format == "json":
        renderer: structlog.types.Processor = structlog.processors.JSONRenderer(_encode)
        lines = _Lines(stream.buffer)
        atexit.register(lines.flush)
        handler: logging.Handler = _LibraryRecords(stream, lines)
        logger_factory = structlog.BytesLoggerFactory(cast("BinaryIO", lines))
        if level in {"debug", "info"}:
            _requests = _Requests(service, lines, worker)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty())
        logger_factory = structlog.PrintLoggerFactory(stream)
        handler = logging.StreamHandler(stream)
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=logger_factory,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer() if log_format == "json" else renderer,
        ],
    )
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The client libraries repeat at INFO and WARNING what our own records say once with context.
    for noisy in ("aiokafka", "kafka", "asyncpg.pool", "aiohttp.access", "engineio", "socketio"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    structlog.contextvars.bind_contextvars(service=service)
    if worker is not None:
        structlog.contextvars.bind_contextvars(worker=worker)

"""Structured logs: one JSON object a line on standard output."""

import logging
import sys
from typing import Any, TextIO

import msgspec
import structlog
from opentelemetry import trace


def _add_trace_id(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event.setdefault("trace_id", f"{context.trace_id:032x}")
    return event


def _encode(event: Any, **_options: Any) -> bytes:
    return msgspec.json.encode(event, enc_hook=repr)


def configure(service: str, *, level: str, log_format: str, stream: TextIO = sys.stdout) -> None:
    """Send structlog's and the standard library's records to `stream` in one form.

    `log_format` is `json` for machines or `console` for people.
    """
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_id,
    ]
    logger_factory: structlog.BytesLoggerFactory | structlog.PrintLoggerFactory
    if log_format == "json":
        renderer: structlog.types.Processor = structlog.processors.JSONRenderer(_encode)
        logger_factory = structlog.BytesLoggerFactory(stream.buffer)
    else:
        renderer = structlog.dev.ConsoleRenderer()
        logger_factory = structlog.PrintLoggerFactory(stream)
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
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The client libraries repeat at INFO and WARNING what our own records say once with context.
    for noisy in ("aiokafka", "kafka", "aiohttp.access", "engineio", "socketio"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    structlog.contextvars.bind_contextvars(service=service)

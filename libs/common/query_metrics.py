"""Connections that observe `db_query_duration_ms`, its labels read once from each statement."""

import re
import time
from typing import Any

import asyncpg
from prometheus_client import Histogram

from libs.common.metrics import DB_QUERY_DURATION

# A write, with the table it goes to ("FOR UPDATE" and "DO UPDATE SET" are none), and what a SELECT reads from (a
# name before a parenthesis is a function).
_WRITE = re.compile(
    r"\b(?:(insert)\s+into|(delete)\s+from|(update))\s+(?:only\s+)?([a-z_]+)(?(3)(?:\s+(?:as\s+)?[a-z_]+)?\s+set\b)",
    re.IGNORECASE,
)
_READ = re.compile(r"\bfrom\s+(?:only\s+)?([a-z_]+)\b(?!\s*\()", re.IGNORECASE)
_KNOWN_STATEMENTS = 1000

_children: dict[str, Histogram] = {}


def statement_labels(sql: str) -> tuple[str, str]:
    """`(query_type, table)` of a statement: its first write, else its first read, and the table of that."""
    verb = sql.split(None, 1)[0].lower().rstrip(";") if sql.strip() else "none"
    if verb == "begin":
        return verb, "none"
    if write := _WRITE.search(sql):
        return (write[1] or write[2] or write[3]).lower(), write[4].lower()
    if read := _READ.search(sql):
        return "select", read[1].lower()
    return verb, "none"


def _child(sql: str) -> Histogram:
    # What begins a transaction names its tenant: there is no end of those texts.
    key = "BEGIN" if sql.startswith("BEGIN") else sql
    child = _children.get(key)
    if child is None:
        child = DB_QUERY_DURATION.labels(*statement_labels(key))
        if len(_children) < _KNOWN_STATEMENTS:  # statements are constants; a bound all the same
            _children[key] = child
    return child


class MeasuredConnection(asyncpg.Connection):  # type: ignore[misc] # (the driver has no types)
    """A connection whose statements are timed, those that fail as well.

    asyncpg's own query loggers are called in a turn of the event loop of their own: four times a read, and each turn
    is a system call.
    """

    _measured = False

    def measure(self) -> None:
        """Begin; what made the connection ready is no query."""
        self._measured = True

    def _observe(self, query: str, started: float) -> None:
        if self._measured:
            _child(query).observe((time.perf_counter() - started) * 1000)

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        started = time.perf_counter()
        try:
            return await super().execute(query, *args, timeout=timeout)
        finally:
            self._observe(query, started)

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return await super().fetch(query, *args, **options)
        finally:
            self._observe(query, started)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return await super().fetchrow(query, *args, **options)
        finally:
            self._observe(query, started)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return await super().fetchval(query, *args, **options)
        finally:
            self._observe(query, started)

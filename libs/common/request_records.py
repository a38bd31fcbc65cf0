"""What is kept of every request: its duration in a histogram, and one line in the log."""

import time

from prometheus_client import Histogram

from libs.common import logs
from libs.common.metrics import HTTP_REQUEST_DURATION

UNMATCHED = "unmatched"
_QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})
_durations: dict[tuple[str, str, int], Histogram] = {}


def record(method: str, route: str, status: int, started: float, fields: dict[str, object]) -> None:
    """A request was answered that came at `started` (of time.perf_counter); `fields` join its line in the log."""
    milliseconds = (time.perf_counter() - started) * 1000
    key = (method if route != UNMATCHED else "OTHER", route, status)
    duration = _durations.get(key)
    if duration is None:
        duration = _durations[key] = HTTP_REQUEST_DURATION.labels(key[0], route, str(status))
    duration.observe(milliseconds)
    if route not in _QUIET_ROUTES:
        logs.request(method=method, route=route, status=status, duration_ms=round(milliseconds, 2), **fields)

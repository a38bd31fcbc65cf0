"""Prometheus metrics that more than one service exports. Durations are in milliseconds where the name says so."""

from prometheus_client import Counter, Gauge, Histogram

HTTP_REQUEST_DURATION = Histogram(
    "http_request_duration_ms",
    "Time from a request's head to its answer's last byte, in milliseconds.",
    ["method", "route", "status_code"],
    buckets=(10, 50, 100, 200, 500, 1000, 2000, 5000),
)
DB_QUERY_DURATION = Histogram(
    "db_query_duration_ms",
    "Time of one statement at the client, in milliseconds.",
    ["query_type", "table"],
    buckets=(0.5, 1, 2, 5, 10, 20, 35, 50, 100, 200, 500, 1000, 5000),
)
CACHE_HITS = Counter("cache_hits_total", "Reads answered from the cache.", ["level", "key_type"])
CACHE_MISSES = Counter("cache_misses_total", "Reads that no cache level could answer.", ["key_type"])
BACKGROUND_FAILURES = Counter(
    "background_failures_total", "Background tasks that failed and were started again.", ["task"]
)
CONSUMED_EVENTS = Counter("consumed_events_total", "Events a consumer group has finished with.", ["group", "outcome"])
CONSUMER_LAG = Gauge("consumer_lag_seconds", "Age of the last event applied at the time it was applied.", ["group"])
EVENT_LOOP_LAG = Gauge("event_loop_lag_seconds", "How late the event loop ran a timer in the last measurement.")

"""The notifier's own metrics."""

from prometheus_client import Counter, Gauge

SOCKETS = Gauge("notifier_sockets", "Authenticated Socket.IO sockets on this instance.")
DELIVERIES = Counter("notifier_deliveries_total", "Events put on a socket: one event to ten sockets counts ten times.")
ANNOUNCED = Counter(
    "notifier_announced_total", "Events from Kafka that were added to a stream, or were in it before.", ["outcome"]
)
VERSION_GAPS = Counter("notifier_version_gaps_total", "Events whose ticket's previous version had not been announced.")

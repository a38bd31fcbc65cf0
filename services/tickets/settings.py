"""What the tickets service reads from its environment."""

import dataclasses

from libs.common.settings import (
    PORT,
    POSTGRES_URL,
    WORKERS,
    ServiceSettings,
    boolean,
    comma_list,
    env,
    integer,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    """For the commands that need the database alone."""

    database_url: str = env("TICKETS_DATABASE_URL", POSTGRES_URL)
    owner_database_url: str | None = env("TICKETS_OWNER_DATABASE_URL", POSTGRES_URL, None)
    replica_urls: tuple[str, ...] = env("TICKETS_REPLICA_URLS", comma_list(POSTGRES_URL), ())
    analytics_url: str | None = env("TICKETS_ANALYTICS_URL", POSTGRES_URL, None)
    pool_minimum: int = env("TICKETS_POOL_MINIMUM", integer(1, 50), 10)
    pool_maximum: int = env("TICKETS_POOL_MAXIMUM", integer(1, 200), 50)
    host: str = env("TICKETS_HOST", str, "127.0.0.1")
    port: int = env("TICKETS_PORT", PORT, 8081)
    workers: int = env("TICKETS_WORKERS", WORKERS, 1)
    metrics_port: int = env("TICKETS_METRICS_PORT", PORT, 9280)
    relay_embedded: bool = env("TICKETS_RELAY_EMBEDDED", boolean, default=True)
    history_days: int = env("TICKETS_HISTORY_DAYS", integer(0, 36_500), 0)
    audit_days: int = env("TICKETS_AUDIT_DAYS", integer(0, 36_500), 0)
    topic_partitions: int = env("TICKETS_TOPIC_PARTITIONS", integer(1, 10_000), 12)
    topic_replication: int = env("TICKETS_TOPIC_REPLICATION", integer(1, 10), 3)

    @property
    def owner_url(self) -> str:
        return self.owner_database_url or self.database_url


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(DatabaseSettings, ServiceSettings):
    """For `serve` and `relay`."""

    trusted_keys: str = env("INTERNAL_TRUSTED_KEYS")
    kafka_bootstrap: str = env("KAFKA_BOOTSTRAP_SERVERS")

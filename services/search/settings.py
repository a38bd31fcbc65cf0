"""What the search service reads from its environment."""

import dataclasses

from libs.common.settings import HTTP_URL, PORT, POSTGRES_URL, REDIS_URL, WORKERS, ServiceSettings, env


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    """For `migrate`, which needs the database alone; the other variables are known, and none of them is required."""

    database_url: str = env("SEARCH_DATABASE_URL", POSTGRES_URL)
    owner_database_url: str | None = env("SEARCH_OWNER_DATABASE_URL", POSTGRES_URL, None)
    host: str = env("SEARCH_HOST", str, "127.0.0.1")
    port: int = env("SEARCH_PORT", PORT, 8083)
    workers: int = env("SEARCH_WORKERS", WORKERS, 1)
    metrics_port: int = env("SEARCH_METRICS_PORT", PORT, 9380)
    tickets_url: str | None = env("SEARCH_TICKETS_URL", HTTP_URL, None)

    @property
    def owner_url(self) -> str:
        return self.owner_database_url or self.database_url


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(DatabaseSettings, ServiceSettings):
    """For `serve`."""

    signing_key: str = env("INTERNAL_SIGNING_KEY")
    trusted_keys: str = env("INTERNAL_TRUSTED_KEYS")
    tickets_url: str = env("SEARCH_TICKETS_URL", HTTP_URL)
    cache_redis_url: str = env("CACHE_REDIS_URL", REDIS_URL)
    kafka_bootstrap: str = env("KAFKA_BOOTSTRAP_SERVERS")

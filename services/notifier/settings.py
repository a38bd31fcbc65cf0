"""What the notifier is told by its environment."""

import dataclasses

from libs.common.settings import PORT, REDIS_URL, ServiceSettings, comma_list, env, origin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ServiceSettings):
    """`redis_url` is the durable Redis. Without `allowed_origins` no browser may connect."""

    trusted_keys: str = env("INTERNAL_TRUSTED_KEYS")
    host: str = env("NOTIFIER_HOST", str, "127.0.0.1")
    port: int = env("NOTIFIER_PORT", PORT, 8082)
    allowed_origins: tuple[str, ...] = env("NOTIFIER_ALLOWED_ORIGINS", comma_list(origin), ())
    redis_url: str = env("REDIS_URL", REDIS_URL)
    kafka_bootstrap_servers: str = env("KAFKA_BOOTSTRAP_SERVERS")

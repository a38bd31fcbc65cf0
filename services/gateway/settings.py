"""What the gateway reads from its environment."""

import dataclasses

from libs.common.settings import HTTP_URL, PORT, REDIS_URL, ServiceSettings, boolean, env, integer, number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ServiceSettings):
    signing_key: str = env("INTERNAL_SIGNING_KEY")
    host: str = env("GATEWAY_HOST", str, "127.0.0.1")
    port: int = env("GATEWAY_PORT", PORT, 8080)
    tickets_url: str = env("GATEWAY_TICKETS_URL", HTTP_URL)
    search_url: str = env("GATEWAY_SEARCH_URL", HTTP_URL)
    notifier_url: str = env("GATEWAY_NOTIFIER_URL", HTTP_URL)
    notifier_public_url: str = env("GATEWAY_NOTIFIER_PUBLIC_URL", HTTP_URL)
    redis_url: str = env("REDIS_URL", REDIS_URL)
    cache_redis_url: str = env("CACHE_REDIS_URL", REDIS_URL)
    session_hours: float = env("GATEWAY_SESSION_HOURS", number(0.01, 24 * 30), 12.0)
    # Browsers keep a Secure cookie from HTTPS (and localhost) only; other clients over plain HTTP need `false`.
    cookie_secure: bool = env("GATEWAY_COOKIE_SECURE", boolean, default=True)
    cache_items: int = env("GATEWAY_CACHE_L1_ITEMS", integer(1, 1_000_000), 500)
    cache_seconds: float = env("GATEWAY_CACHE_L1_SECONDS", number(0.1, 3600), 300.0)
    cache_l2_seconds: int = env("GATEWAY_CACHE_L2_SECONDS", integer(1, 86_400), 900)
    upstream_seconds: float = env("GATEWAY_UPSTREAM_SECONDS", number(0.1, 300), 10.0)

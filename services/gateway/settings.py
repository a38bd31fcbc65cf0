"""What the gateway reads from its environment."""

import dataclasses

from libs.common.settings import (
    HTTP_URL,
    PORT,
    REDIS_URL,
    WORKERS,
    ServiceSettings,
    boolean,
    comma_list,
    env,
    integer,
    number,
    one_of,
    origin,
)
from services.gateway.edge.proxies import FORWARDED, X_FORWARDED, Network, network
from services.gateway.limits.gcra import Rate, parse_rate
from services.gateway.upstreams.instances import parse_addresses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ServiceSettings):
    signing_key: str = env("INTERNAL_SIGNING_KEY")
    host: str = env("GATEWAY_HOST", str, "127.0.0.1")
    port: int = env("GATEWAY_PORT", PORT, 8080)
    workers: int = env("GATEWAY_WORKERS", WORKERS, 1)
    metrics_port: int = env("GATEWAY_METRICS_PORT", PORT, 9180)
    tickets_urls: tuple[str, ...] = env("GATEWAY_TICKETS_URL", parse_addresses)
    search_urls: tuple[str, ...] = env("GATEWAY_SEARCH_URL", parse_addresses)
    notifier_urls: tuple[str, ...] = env("GATEWAY_NOTIFIER_URL", parse_addresses)
    notifier_public_url: str = env("GATEWAY_NOTIFIER_PUBLIC_URL", HTTP_URL)
    redis_url: str = env("REDIS_URL", REDIS_URL)
    cache_redis_url: str = env("CACHE_REDIS_URL", REDIS_URL)
    session_hours: float = env("GATEWAY_SESSION_HOURS", number(0.01, 24 * 30), 12.0)
    # Browsers keep a Secure cookie from HTTPS (and localhost) only; other clients over plain HTTP need `false`.
    cookie_secure: bool = env("GATEWAY_COOKIE_SECURE", boolean, default=True)
    cache_items: int = env("GATEWAY_CACHE_L1_ITEMS", integer(1, 1_000_000), 500)
    cache_seconds: float = env("GATEWAY_CACHE_L1_SECONDS", number(0.1, 3600), 300.0)
    cache_l2_seconds: int = env("GATEWAY_CACHE_L2_SECONDS", integer(1, 86_400), 900)
    cache_stale_seconds: int = env("GATEWAY_CACHE_STALE_SECONDS", integer(0, 86_400), 300)
    limit_credential: Rate = env("GATEWAY_LIMIT_CREDENTIAL", parse_rate, Rate(6_000, 1_000))
    limit_organization: Rate = env("GATEWAY_LIMIT_ORGANIZATION", parse_rate, Rate(60_000, 10_000))
    limit_address: Rate = env("GATEWAY_LIMIT_ADDRESS", parse_rate, Rate(120, 120))
    limit_sign_in: Rate = env("GATEWAY_LIMIT_SIGN_IN", parse_rate, Rate(30, 30))
    limit_account: Rate = env("GATEWAY_LIMIT_ACCOUNT", parse_rate, Rate(6, 12))
    upstream_seconds: float = env("GATEWAY_UPSTREAM_SECONDS", number(0.1, 300), 10.0)
    allowed_origins: tuple[str, ...] = env("GATEWAY_ALLOWED_ORIGINS", comma_list(origin), ())
    trusted_proxies: tuple[Network, ...] = env("GATEWAY_TRUSTED_PROXIES", comma_list(network), ())
    forwarded_header: str = env("GATEWAY_FORWARDED_HEADER", one_of(X_FORWARDED, FORWARDED), X_FORWARDED)
    head_seconds: float = env("GATEWAY_HEAD_SECONDS", number(0.1, 300), 10.0)
    body_seconds: float = env("GATEWAY_BODY_SECONDS", number(0.1, 300), 20.0)
    idle_seconds: float = env("GATEWAY_IDLE_SECONDS", number(0.1, 3600), 75.0)
    write_seconds: float = env("GATEWAY_WRITE_SECONDS", number(0.1, 300), 30.0)

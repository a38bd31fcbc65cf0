"""Which environment variables each service gets, and what the user may say about them."""

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from infra.local.credentials import SERVICES, Credentials
from infra.local.errors import LauncherError
from infra.local.ports import HOST

# What a service reads besides the variables that begin with its own name.
SHARED_VARIABLES = frozenset(
    {
        "LOG_LEVEL",
        "LOG_FORMAT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "TRACE_SAMPLE_RATIO",
        "INTERNAL_SIGNING_KEY",
        "INTERNAL_TRUSTED_KEYS",
        "DRAIN_SECONDS",
        "REDIS_URL",
        "CACHE_REDIS_URL",
        "KAFKA_BOOTSTRAP_SERVERS",
    }
)
_ADDRESSES = frozenset({"REDIS_URL", "CACHE_REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS"})
# Nobody else is on this machine: the limits work, and neither a benchmark nor a test run meets them by accident.
_GATEWAY_LIMITS = {
    "GATEWAY_LIMIT_CREDENTIAL": "6000000/100000",
    "GATEWAY_LIMIT_ORGANIZATION": "6000000/100000",
    "GATEWAY_LIMIT_ADDRESS": "6000000/100000",
    "GATEWAY_LIMIT_SIGN_IN": "60000/10000",
}
_OWN_PREFIXES = tuple(f"{service.upper()}_" for service in SERVICES)


# Who makes internal tokens, and who takes them.
SIGNING = ("gateway", "search")
VERIFYING = ("tickets", "notifier", "search")


@dataclass(frozen=True)
class Addresses:
    """Where everything of a stack answers, embedded or external."""

    tickets_database: str
    replicas: list[str]
    search_database: str
    redis: str
    cache_redis: str
    kafka: str
    services: dict[str, str]
    analytics: str = ""  # no reports


def service_environment(
    service: str, addresses: Addresses, credentials: Credentials, environ: Mapping[str, str]
) -> dict[str, str]:
    """The complete settings of a service (see the settings.py of each).

    The stack's defaults yield to what the user has set; addresses and keys that the parts must agree on do
    not. (An external address the user has set is already part of `addresses`.)
    """
    port = urllib.parse.urlsplit(addresses.services[service]).port
    prefix = service.upper()
    defaults = {"LOG_LEVEL": "info", "LOG_FORMAT": "json", "DRAIN_SECONDS": "0", f"{prefix}_HOST": HOST}
    agreed = {f"{prefix}_PORT": str(port)}
    if service in SIGNING:
        agreed["INTERNAL_SIGNING_KEY"] = credentials.signing_key(service)
    if service in VERIFYING:
        agreed["INTERNAL_TRUSTED_KEYS"] = credentials.trusted_keys()
    match service:
        case "gateway":
            defaults["GATEWAY_COOKIE_SECURE"] = "false"  # plain HTTP on loopback
            defaults |= _GATEWAY_LIMITS
            defaults["GATEWAY_NOTIFIER_PUBLIC_URL"] = addresses.services["notifier"]
            agreed |= {
                "GATEWAY_TICKETS_URL": addresses.services["tickets"],
                "GATEWAY_SEARCH_URL": addresses.services["search"],
                "GATEWAY_NOTIFIER_URL": addresses.services["notifier"],
                "REDIS_URL": addresses.redis,
                "CACHE_REDIS_URL": addresses.cache_redis,
            }
        case "tickets":
            defaults["TICKETS_TOPIC_REPLICATION"] = "1"
            agreed |= {
                "TICKETS_DATABASE_URL": addresses.tickets_database,
                "TICKETS_REPLICA_URLS": ",".join(addresses.replicas),
                "KAFKA_BOOTSTRAP_SERVERS": addresses.kafka,
            }
            if addresses.analytics:
                agreed["TICKETS_ANALYTICS_URL"] = addresses.analytics
        case "notifier":
            defaults["NOTIFIER_ALLOWED_ORIGINS"] = ""
            agreed |= {"REDIS_URL": addresses.redis, "KAFKA_BOOTSTRAP_SERVERS": addresses.kafka}
        case "search":
            agreed |= {
                "SEARCH_DATABASE_URL": addresses.search_database,
                "SEARCH_TICKETS_URL": addresses.services["tickets"],
                "CACHE_REDIS_URL": addresses.cache_redis,
                "KAFKA_BOOTSTRAP_SERVERS": addresses.kafka,
            }
        case _:
            raise ValueError(f"there is no service {service!r}")
    chosen = {
        name: value
        for name, value in environ.items()
        if name.startswith(f"{prefix}_") or name in SHARED_VARIABLES - _ADDRESSES
    }
    return defaults | chosen | agreed


def neutral(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without any variable that a service reads: PATH, HOME, locale, certificates stay."""
    return {
        name: value
        for name, value in environ.items()
        if name not in SHARED_VARIABLES and not name.startswith(_OWN_PREFIXES)
    }


def require_consistent(environ: Mapping[str, str]) -> None:
    """Raise LauncherError for addresses of external parts that make no sense together."""
    for name in ("TICKETS_REPLICA_URLS", "TICKETS_ANALYTICS_URL"):
        if environ.get(name) and not environ.get("TICKETS_DATABASE_URL"):
            raise LauncherError(f"{name} needs TICKETS_DATABASE_URL; set both or neither.")


def without_password(url: str) -> str:
    """An address that may be shown."""
    parsed = urllib.parse.urlsplit(url)
    if parsed.password is None:
        return url
    host = parsed.netloc.rpartition("@")[2]
    return parsed._replace(netloc=f"{parsed.username or ''}:***@{host}").geturl()

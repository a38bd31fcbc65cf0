"""What each service gets to read."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.local.credentials import SERVICES, Credentials
from infra.local.environment import Addresses, neutral, service_environment, without_password
from infra.local.errors import LauncherError
from infra.local.stack import Stack

CREDENTIALS = Credentials.generate()
ADDRESSES = Addresses(
    tickets_database="postgresql://t",
    replicas=["postgresql://r1", "postgresql://r2"],
    search_database="postgresql://s",
    redis="redis://durable",
    cache_redis="redis://cache",
    kafka="127.0.0.1:9092",
    services={name: f"http://127.0.0.1:{8080 + index}" for index, name in enumerate(SERVICES)},
    analytics="postgresql://a",
)
EXPECTED = {
    "gateway": {
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": "8080",
        "GATEWAY_TICKETS_URL": "http://127.0.0.1:8081",
        "GATEWAY_SEARCH_URL": "http://127.0.0.1:8083",
        "GATEWAY_NOTIFIER_URL": "http://127.0.0.1:8082",
        "GATEWAY_NOTIFIER_PUBLIC_URL": "http://127.0.0.1:8082",
        "GATEWAY_COOKIE_SECURE": "false",
        "GATEWAY_LIMIT_CREDENTIAL": "6000000/100000",
        "GATEWAY_LIMIT_ORGANIZATION": "6000000/100000",
        "GATEWAY_LIMIT_ADDRESS": "6000000/100000",
        "GATEWAY_LIMIT_SIGN_IN": "60000/10000",
        "REDIS_URL": "redis://durable",
        "CACHE_REDIS_URL": "redis://cache",
    },
    "tickets": {
        "TICKETS_HOST": "127.0.0.1",
        "TICKETS_PORT": "8081",
        "TICKETS_DATABASE_URL": "postgresql://t",
        "TICKETS_REPLICA_URLS": "postgresql://r1,postgresql://r2",
        "TICKETS_ANALYTICS_URL": "postgresql://a",
        "TICKETS_TOPIC_REPLICATION": "1",
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9092",
    },
    "notifier": {
        "NOTIFIER_HOST": "127.0.0.1",
        "NOTIFIER_PORT": "8082",
        "NOTIFIER_ALLOWED_ORIGINS": "",
        "REDIS_URL": "redis://durable",
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9092",
    },
    "search": {
        "SEARCH_HOST": "127.0.0.1",
        "SEARCH_PORT": "8083",
        "SEARCH_DATABASE_URL": "postgresql://s",
        "SEARCH_TICKETS_URL": "http://127.0.0.1:8081",
        "CACHE_REDIS_URL": "redis://cache",
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9092",
    },
}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_gets_exactly_its_own_settings(service: str) -> None:
    environment = service_environment(service, ADDRESSES, CREDENTIALS, {})
    if service in {"gateway", "search"}:
        assert json.loads(environment.pop("INTERNAL_SIGNING_KEY"))["kid"] == service
    if service != "gateway":
        trusted = json.loads(environment.pop("INTERNAL_TRUSTED_KEYS"))["keys"]
        assert [key["kid"] for key in trusted] == list(SERVICES)
        assert not any("d" in key for key in trusted), "a private key was handed to everybody"
    common = {"LOG_LEVEL": "info", "LOG_FORMAT": "json", "DRAIN_SECONDS": "0"}
    assert environment == EXPECTED[service] | common


def test_the_users_settings_reach_the_service_they_are_meant_for_and_no_other() -> None:
    environ = {"TICKETS_TOPIC_PARTITIONS": "3", "LOG_LEVEL": "debug", "HOME": "/home/x"}
    tickets = service_environment("tickets", ADDRESSES, CREDENTIALS, environ)
    search = service_environment("search", ADDRESSES, CREDENTIALS, environ)
    assert (tickets["TICKETS_TOPIC_PARTITIONS"], tickets["LOG_LEVEL"]) == ("3", "debug")
    assert "HOME" not in tickets
    assert "TICKETS_TOPIC_PARTITIONS" not in search


def test_what_the_parts_must_agree_on_is_not_the_users_to_change() -> None:
    environ = {"TICKETS_PORT": "1", "INTERNAL_TRUSTED_KEYS": "{}", "REDIS_URL": "redis://x"}
    environment = service_environment("tickets", ADDRESSES, CREDENTIALS, environ)
    assert environment["TICKETS_PORT"] == "8081"
    assert environment["INTERNAL_TRUSTED_KEYS"] == CREDENTIALS.trusted_keys()
    assert "REDIS_URL" not in environment


def test_a_child_inherits_nothing_that_a_service_would_read() -> None:
    environ = {"PATH": "/bin", "GATEWAY_TYPO": "1", "REDIS_URL": "x", "LOG_LEVEL": "debug", "SSL_CERT_FILE": "y"}
    assert neutral(environ) == {"PATH": "/bin", "SSL_CERT_FILE": "y"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@db.example:5432/tickets", "postgresql://me:***@db.example:5432/tickets"),
        ("redis://:secret@cache.example/0", "redis://:***@cache.example/0"),
        ("broker.example:9092", "broker.example:9092"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


EXTERNAL = {
    "TICKETS_DATABASE_URL": "postgresql://a:b@db.example/tickets",
    "SEARCH_DATABASE_URL": "postgresql://a:b@db.example/search",
    "REDIS_URL": "redis://:b@redis.example",
    "CACHE_REDIS_URL": "redis://:b@cache.example",
    "KAFKA_BOOTSTRAP_SERVERS": "kafka.example:9092",
}


def parts(tmp_path: Path, environ: dict[str, str], **more: Any) -> list[str]:
    return list(Stack(tmp_path, environ=environ, services=(), **more).parts)


def test_everything_external_leaves_nothing_to_start(tmp_path: Path) -> None:
    assert parts(tmp_path, EXTERNAL) == []


@pytest.mark.parametrize(
    ("variable", "gone"),
    [
        ("REDIS_URL", {"redis"}),
        ("CACHE_REDIS_URL", {"cache-redis"}),
        ("KAFKA_BOOTSTRAP_SERVERS", {"kafka"}),
        ("SEARCH_DATABASE_URL", set()),
        ("TICKETS_DATABASE_URL", {"replica-1"}),  # it would not have the tickets
    ],
)
def test_an_external_address_replaces_one_part(tmp_path: Path, variable: str, gone: set[str]) -> None:
    everything = {"postgres", "replica-1", "kafka", "redis", "cache-redis"}
    assert set(parts(tmp_path, {variable: EXTERNAL[variable]})) == everything - gone


def test_external_replicas_are_used_and_mean_nothing_without_their_primary(tmp_path: Path) -> None:
    urls = {"TICKETS_REPLICA_URLS": "postgresql://r1,postgresql://r2"}
    stack = Stack(tmp_path, environ=EXTERNAL | urls, services=())
    assert stack.environment("tickets")["TICKETS_REPLICA_URLS"] == urls["TICKETS_REPLICA_URLS"]
    assert "TICKETS_ANALYTICS_URL" not in stack.environment("tickets")
    with pytest.raises(LauncherError, match="TICKETS_REPLICA_URLS needs TICKETS_DATABASE_URL"):
        parts(tmp_path, urls)


def test_reports_are_read_from_the_analytics_replica_or_from_the_first_of_the_others(tmp_path: Path) -> None:
    def reports(stack: Stack) -> str:
        return stack.environment("tickets").get("TICKETS_ANALYTICS_URL", "")

    own = Stack(tmp_path, services=(), replicas=1, analytics=True)
    assert reports(own) == own.analytics_url
    shared = Stack(tmp_path, services=(), replicas=2)
    assert reports(shared) == shared.replica_urls[0]
    assert reports(Stack(tmp_path, services=(), replicas=0)) == ""
    given = {"TICKETS_ANALYTICS_URL": "postgresql://reports.example/tickets"}
    assert reports(Stack(tmp_path, environ=EXTERNAL | given, services=())) == given["TICKETS_ANALYTICS_URL"]
    with pytest.raises(LauncherError, match="TICKETS_ANALYTICS_URL needs TICKETS_DATABASE_URL"):
        parts(tmp_path, given)


def test_replicas_are_as_many_as_were_asked_for(tmp_path: Path) -> None:
    names = parts(tmp_path, {}, replicas=2, analytics=True)
    assert names == ["postgres", "replica-1", "replica-2", "kafka", "redis", "cache-redis", "analytics"]
    stack = Stack(tmp_path, services=(), replicas=2, analytics=True)
    assert len(stack.replica_urls) == 2
    assert stack.analytics_url not in stack.replica_urls


def test_a_service_is_migrated_when_its_database_is_there_and_started_when_all_its_servers_are(
    tmp_path: Path,
) -> None:
    everything = Stack(tmp_path).parts
    assert {name: list(everything[name].prepared_after) for name in SERVICES} == {
        "gateway": [],
        "tickets": ["postgres"],
        "notifier": [],
        "search": ["postgres"],
    }
    assert {name: list(everything[name].started_after) for name in SERVICES} == {
        "gateway": ["redis", "cache-redis"],
        "tickets": ["postgres", "replica-1", "kafka"],
        "notifier": ["kafka", "redis", "cache-redis"],
        "search": ["postgres", "replica-1", "kafka", "redis", "cache-redis"],
    }
    external = Stack(tmp_path, environ=EXTERNAL).parts
    assert [part.name for part in external.values() if part.prepared_after or part.started_after] == []

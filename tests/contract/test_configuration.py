"""docs/configuration.md names every setting with its default and its range, and none that does not exist."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cli import credentials as cli_credentials
from infra.local.composition import Composition
from infra.local.credentials import SERVICES, Credentials
from infra.local.environment import Addresses, service_environment
from infra.local.ports import DEFAULT_PORTS
from libs.common.settings import ServiceSettings
from services.gateway.settings import Settings as GatewaySettings
from services.notifier.settings import Settings as NotifierSettings
from services.search.settings import Settings as SearchSettings
from services.tickets.settings import Settings as TicketsSettings
from tests.support.pages import rows, sections, words

PAGE = sections("configuration.md")
EVERYWHERE = "Every service"
SETTINGS: Mapping[str, type[ServiceSettings]] = {
    EVERYWHERE: ServiceSettings,
    "gateway": GatewaySettings,
    "tickets": TicketsSettings,
    "notifier": NotifierSettings,
    "search": SearchSettings,
}
EXTERNAL = {
    "TICKETS_DATABASE_URL": "postgresql://db.example/tickets",
    "TICKETS_REPLICA_URLS": "postgresql://replica.example/tickets",
    "TICKETS_ANALYTICS_URL": "postgresql://analytics.example/tickets",
    "SEARCH_DATABASE_URL": "postgresql://db.example/search",
    "REDIS_URL": "redis://redis.example",
    "CACHE_REDIS_URL": "redis://cache.example",
    "KAFKA_BOOTSTRAP_SERVERS": "kafka.example:9092",
}
_RANGE = re.compile(r"([0-9.]+) to ([0-9.]+)")


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return Credentials.generate()


@pytest.mark.parametrize("section", SETTINGS)
def test_a_service_has_the_variables_and_defaults_on_the_page(section: str) -> None:
    told = {name: default for name, _meaning, default, _range in rows(PAGE[section])}
    declared = {name: _shown(field.default) for name, field in _fields(section).items()}
    assert told == declared


@pytest.mark.parametrize("section", SETTINGS)
def test_a_variable_takes_what_the_page_says_and_nothing_else(section: str) -> None:
    fields = _fields(section)
    for name, _meaning, _default, text in rows(PAGE[section]):
        parse = fields[name].metadata["parse"]
        if limits := _RANGE.fullmatch(text):
            lowest, highest = float(limits[1]), float(limits[2])
            assert (parse(limits[1]), parse(limits[2])) == (lowest, highest), name
            for beyond in (f"{lowest - 1:g}", f"{highest + 1:.0f}"):
                with pytest.raises(ValueError, match="expected"):
                    parse(beyond)
        elif text.startswith("`"):
            for word in words(text):
                parse(word)
            with pytest.raises(ValueError, match="expected"):
                parse("another")
        elif text.startswith("an address that starts with"):
            for scheme in words(text):
                assert parse(f"{scheme}host") == f"{scheme}host", name
            with pytest.raises(ValueError, match="expected"):
                parse("ftp://host")


def test_the_launcher_has_the_ports_on_the_page() -> None:
    assert {name: int(words(default)[0]) for name, _part, default in rows(PAGE["Ports"])} == DEFAULT_PORTS


def test_the_parts_on_the_page_and_no_others_are_replaced_by_their_addresses(
    tmp_path: Path, credentials: Credentials
) -> None:
    told = [name for name, _what in rows(PAGE["External parts"])]
    assert sorted(told) == sorted(EXTERNAL)

    def started(*without: str) -> set[str]:
        environ = {name: value for name, value in EXTERNAL.items() if name not in without}
        composition = Composition(
            tmp_path, credentials, environ=environ, ports=DEFAULT_PORTS, replicas=1, analytics=False, services=()
        )
        return set(composition.parts)

    assert started() == set()
    tickets = ("TICKETS_DATABASE_URL", "TICKETS_REPLICA_URLS", "TICKETS_ANALYTICS_URL")
    assert started(*tickets) == {"postgres", "replica-1"}
    assert started("TICKETS_REPLICA_URLS") == set()
    assert started("TICKETS_ANALYTICS_URL") == set()
    assert started("SEARCH_DATABASE_URL") == {"postgres"}
    assert started("REDIS_URL") == {"redis"}
    assert started("CACHE_REDIS_URL") == {"cache-redis"}
    assert started("KAFKA_BOOTSTRAP_SERVERS") == {"kafka"}


def test_the_stack_differs_from_the_services_defaults_as_the_page_says(credentials: Credentials) -> None:
    urls = {name: f"http://127.0.0.1:{DEFAULT_PORTS[f'{name.upper()}_PORT']}" for name in SERVICES}
    addresses = Addresses("postgresql://t", [], "postgresql://s", "redis://r", "redis://c", "kafka:1", urls)
    differing = {}
    for service in SERVICES:
        fields = {**_fields(EVERYWHERE), **_fields(service)}
        for name, value in service_environment(service, addresses, credentials, {}).items():
            field = fields[name]
            if field.default is not dataclasses.MISSING and field.metadata["parse"](value) != field.default:
                differing[name] = value
    assert {name: words(value)[0] for name, value, _why in rows(PAGE["Other defaults"])} == differing


def test_the_command_line_has_the_variables_on_the_page() -> None:
    told = {name: default for name, _meaning, default in rows(PAGE["The command line"])}
    source = Path(cli_credentials.__file__).with_name("app.py").read_text(encoding="utf-8")
    assert set(told) == set(re.findall(r'envvar="([A-Z_]+)"', source))
    assert told["RELAYDESK_URL"] == f"`{cli_credentials.DEFAULT_URL}`"


def _fields(section: str) -> dict[str, "dataclasses.Field[Any]"]:
    """The fields of a section by variable; a service's without those that every service has."""
    fields = {field.metadata["env"]: field for field in dataclasses.fields(SETTINGS[section])}
    if section != EVERYWHERE:
        for field in dataclasses.fields(ServiceSettings):
            del fields[field.metadata["env"]]
    return fields


def _shown(default: object) -> str:
    if default is dataclasses.MISSING:
        return "required"
    if default is None:
        return "none"
    if default == ():
        return "empty"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"

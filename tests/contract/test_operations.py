"""docs/operations.md names every command, metric, check, role and log event there is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from services.gateway import __main__ as gateway
from services.gateway.routes.health import HealthRoute
from services.notifier import __main__ as notifier
from services.search import __main__ as search
from services.tickets import __main__ as tickets
from tests.support.pages import CHECKOUT, rows, sections, words

PAGE = sections("operations.md")
KINDS = ("Counter", "Gauge", "Histogram", "Summary", "Info", "Enum")
COMMANDS = {"gateway": gateway, "tickets": tickets, "notifier": notifier, "search": search}


def _calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in libs and services, with the last part of what is called."""
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func
                yield (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")), node


def _sources() -> Iterator[Path]:
    for folder in ("libs", "services"):
        yield from sorted((CHECKOUT / folder).rglob("*.py"))


def test_every_metric_is_on_the_page_with_its_kind_and_labels() -> None:
    declared = {}
    for called, call in _calls():
        if called in KINDS and call.args and isinstance(call.args[0], ast.Constant):
            labels = ast.literal_eval(call.args[2]) if len(call.args) > 2 else []
            declared[call.args[0].value] = (called.lower(), labels)
    told = {name: (kind, words(labels)) for name, kind, labels, *_rest in rows(PAGE["Metrics"])}
    assert len(declared) > 15
    assert told == declared


@pytest.mark.parametrize("service", COMMANDS)
def test_a_service_has_the_commands_on_the_page(service: str) -> None:
    prefix = f"python -m services.{service} "
    told = {row[0].removeprefix(prefix) for row in rows(PAGE["Processes"]) if row[0].startswith(prefix)}
    group: Any = typer.main.get_command(COMMANDS[service].commands)
    assert told == set(group.commands)


def test_health_has_the_checks_on_the_page() -> None:
    nothing: Any = None
    route = HealthRoute(redis=nothing, cache_redis=nothing, tickets=nothing, search=nothing, notifier=nothing)
    told = [row[0] for row in rows(PAGE["Probes"]) if not row[0].startswith("/")]
    assert told == list(route._checks)


def test_the_roles_on_the_page_are_those_that_migrations_create() -> None:
    created = set()
    for path in sorted((CHECKOUT / "services").glob("*/migrations/*.sql")):
        created |= set(re.findall(r"CREATE ROLE (\w+)", path.read_text(encoding="utf-8")))
        for array in re.findall(r"role_name IN ARRAY ARRAY\[([^\]]+)\]", path.read_text(encoding="utf-8")):
            created |= set(re.findall(r"'(\w+)'", array))
    assert {row[0] for row in rows(PAGE["Roles in PostgreSQL"])} == created


def test_the_log_events_on_the_page_exist() -> None:
    written = {
        call.args[0].value
        for called, call in _calls()
        if called in {"info", "warning", "error", "exception"} and call.args and isinstance(call.args[0], ast.Constant)
    }
    table = [line for line in PAGE["Logs"].splitlines() if line.startswith("| `")]
    told = {name for line in table for name in words(line.split("|")[1])}
    assert len(told) > 10
    assert told <= written

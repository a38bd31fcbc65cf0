"""docs/flows.md: every name on it exists, one hop leads to the next, and none is longer than three without a reason."""

import ast
import importlib
import re
from typing import Any, NamedTuple

import pytest

from services.gateway.endpoints import ENDPOINTS
from tests.support.pages import CHECKOUT, DOCS, sections

PAGE = (DOCS / "flows.md").read_text(encoding="utf-8")
EXAMPLE = "path/file.py:name"
NAMES = sorted(set(re.findall(r"`([\w/]+\.py:[\w.]+)`", PAGE)) - {EXAMPLE})
SERVICES = ("gateway", "tickets", "notifier", "search")
HOPS = 3
REASON = "  - Longer: "
# Answered by the gateway itself: no flow.
NO_FLOW = {
    ("GET", "/api/session"),
    ("GET", "/api/keys"),
    ("GET", "/api/health"),
    ("GET", "/api/openapi.json"),
    ("GET", "/api/docs"),
}

_HOP = re.compile(r"  (\d+)\. `([\w/]+\.py):([\w.]+)`")


class Leg(NamedTuple):
    """A flow's part within one process; a hop is a file and the name in it."""

    flow: str
    title: str
    hops: list[tuple[str, str]]
    has_reason: bool


def _legs() -> list[Leg]:
    legs: list[Leg] = []
    for flow, text in sections("flows.md").items():
        for part in re.split(r"^- ", text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            hops = [hop for hop in map(_HOP.match, lines) if hop]
            assert [int(hop[1]) for hop in hops] == list(range(1, len(hops) + 1)), f"{flow}: {lines[0]}"
            assert len(hops) == sum(line.startswith("  ") and line[2:3].isdigit() for line in lines), f"{flow}: {part}"
            has_reason = any(line.startswith(REASON) for line in lines)
            legs.append(Leg(flow, lines[0], [(hop[2], hop[3]) for hop in hops], has_reason))
    return legs


LEGS = _legs()


def test_the_page_has_names_and_flows() -> None:
    assert len(NAMES) > 50
    assert len(LEGS) > 30
    for service in SERVICES:
        assert any(leg.title.startswith(service) and leg.hops for leg in LEGS), service


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_page_is_defined_in_its_file(name: str) -> None:
    path, _, dotted = name.partition(":")
    assert (CHECKOUT / path).is_file()
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    found: Any = module
    for part in dotted.split("."):
        found = getattr(found, part)
    assert getattr(found, "__module__", module.__name__) == module.__name__, "it is only imported there"


@pytest.mark.parametrize("leg", LEGS, ids=lambda leg: f"{leg.flow}-{leg.title}")
def test_a_leg_is_three_hops_or_says_why_it_is_longer(leg: Leg) -> None:
    assert (len(leg.hops) > HOPS) == leg.has_reason


@pytest.mark.parametrize(
    "leg", [leg for leg in LEGS if leg.flow != "Every request"], ids=lambda leg: f"{leg.flow}-{leg.title}"
)
def test_each_hop_leads_to_the_next(leg: Leg) -> None:
    """A hop's code names the next one; or an earlier hop, app.py or a constructor does, which hand it on."""
    named = ""
    for (path, name), (next_path, following) in zip(leg.hops, leg.hops[1:], strict=False):
        named += _code(path, name.rpartition(".")[2])
        wiring = (CHECKOUT / next_path).with_name("app.py")
        if path == next_path:
            handed_on = _functions(path).get("__init__", "")
        else:
            handed_on = wiring.read_text(encoding="utf-8") if wiring.is_file() else ""
        called = following.rpartition(".")[2]
        assert re.search(rf"\b{called}\b", named + handed_on), f"{path}:{name} does not lead to {following}"


def _functions(path: str) -> dict[str, str]:
    """The code of a file's functions by name; methods of one name together."""
    text = (CHECKOUT / path).read_text(encoding="utf-8")
    functions: dict[str, str] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions[node.name] = functions.get(node.name, "") + (ast.get_source_segment(text, node) or "")
    return functions


def _code(path: str, name: str) -> str:
    """The code of the function `name` and of those in the same file that it names, and that these name, and so on."""
    functions = _functions(path)
    found: dict[str, str] = {}
    wanted = [name]
    while wanted:
        one = wanted.pop()
        if one in functions and one not in found:
            found[one] = functions[one]
            wanted += re.findall(r"\w+", functions[one])
    return "\n".join(found.values())


def test_every_public_endpoint_that_leaves_the_gateway_is_a_flow() -> None:
    told = set(re.findall(r"`(GET|POST|PATCH|PUT|DELETE) (/api/[\w/{}]+)`", PAGE))
    declared = {(endpoint.method, re.sub(r"\{\w+\}", "{id}", endpoint.path)) for endpoint in ENDPOINTS}
    assert told == declared - NO_FLOW

"""Error codes, and the translation of what msgspec complains about."""

import ast
import http
from pathlib import Path
from typing import Any

import msgspec
import pytest

from libs.common import complaints
from libs.common.cache.administration import ClearCache
from libs.common.models import BulkCreate, NewComment, NewTicket, TicketChanges, TicketUpdate
from libs.common.problems import CODES, Problem, decode_body, unavailable
from services.gateway.endpoints import ENDPOINTS

CHECKOUT = Path(__file__).parents[3]
DEEP = b"[" * 100_000


def _used_codes() -> dict[str, set[str]]:
    """Every code that a string constant given to `Problem` or `problem` can be, with the files it stands in."""
    used: dict[str, set[str]] = {}
    for folder in ("libs", "services"):
        for path in (CHECKOUT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
                    for code in _strings(node.args[0], path):
                        used.setdefault(code, set()).add(path.name)
    return used


def _strings(argument: ast.expr, path: Path) -> set[str]:
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return {argument.value}
    if isinstance(argument, ast.IfExp):
        return _strings(argument.body, path) | _strings(argument.orelse, path)
    assert isinstance(argument, ast.Name), f"{path}: {ast.unparse(argument)}"
    values = [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == argument.id for target in node.targets)
    ]
    return {code for value in values for code in _strings(value, path)}


def test_every_code_that_is_used_is_declared() -> None:
    assert {code: files for code, files in _used_codes().items() if code not in CODES} == {}


def test_every_declared_code_is_used() -> None:
    assert set(CODES) - set(_used_codes()) == set()


@pytest.mark.parametrize("code", CODES)
def test_a_code_has_an_error_status_and_a_sentence(code: str) -> None:
    details = Problem(code).details("0" * 32)
    assert details.status == http.HTTPStatus(details.status) >= 400
    assert details.title.endswith(".")
    assert details.type == f"urn:relaydesk:problem:{code}"
    assert msgspec.to_builtins(details).keys() == {"type", "title", "status", "code", "trace_id"}


def test_an_undeclared_code_cannot_be_told() -> None:
    with pytest.raises(KeyError):
        Problem("no_such_code")


@pytest.mark.parametrize("code", ["service_unavailable", "deadline_exceeded"])
def test_what_may_be_tried_again_says_when(code: str) -> None:
    assert int(Problem(code).headers["Retry-After"]) > 0
    assert "Retry-After" not in Problem("ticket_not_found").headers
    assert unavailable("The database").status == 503


def refusal(model: type, body: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        decode_body(msgspec.json.Decoder(model), body)
    return caught.value


@pytest.mark.parametrize(
    ("model", "body", "pointer"),
    [
        (NewTicket, b'{"title": 1}', "/title"),
        (NewTicket, b'{"title": ""}', "/title"),
        (NewTicket, b'{"title": "  "}', "/title"),
        (NewTicket, b'{"title": "a\\u0000"}', "/title"),
        (NewTicket, b'{"title": "a", "priority": "high!"}', "/priority"),
        (NewTicket, b'{"title": "a", "fields": {"k": 1}}', "/fields/k"),
        (NewTicket, b'{"title": "a", "fields": {"good": "1", "a/b~c": 1}}', "/fields/a~1b~0c"),
        (NewTicket, b'{"title": "a", "fields": {"k": 1, "k": "1"}}', "/fields"),
        (NewTicket, b'{"title": "a", "fields": {"": "x"}}', "/fields/"),
        (NewTicket, b'{"title": "a", "fields": {"k\\u0000": "x"}}', "/fields/k\0"),
        (NewTicket, b'{"description": "a"}', "/title"),
        (NewTicket, b'{"title": "a", "titel": "b"}', "/titel"),
        (NewTicket, b'{"title": "a", "x - at `$.b` y": 1}', "/x - at `$.b` y"),
        (NewTicket, b"[]", ""),
        (NewTicket, b"null", ""),
        (TicketChanges, b'{"assigned_to": "me"}', "/assigned_to"),
        (TicketChanges, b'{"status": null}', "/status"),
        (TicketChanges, b'{"version": 2}', "/version"),
        (NewComment, b'{"body": ""}', "/body"),
        (BulkCreate, b'{"tickets": []}', "/tickets"),
        (BulkCreate, b'{"tickets": {}}', "/tickets"),
        (NewTicket, b'{"title": ' + DEEP, "/title"),
    ],
)
def test_a_body_of_the_wrong_form_is_pointed_at(model: type, body: bytes, pointer: str) -> None:
    problem = refusal(model, body)
    assert problem.code == "validation_failed"
    assert [error.pointer for error in problem.errors] == [pointer]
    assert " - at `" not in problem.errors[0].message or "x - at" in problem.errors[0].message
    assert "regex" not in problem.errors[0].message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"tickets",
        b'{"tickets": [1,]}',
        b'{"tickets": [{"title": "\xff"}]}x',
        b'{"tickets": ' + DEEP,
        b'{"tickets": [{"a": ' + DEEP + b"]" * 100_000 + b"}]}",
        b"\xff\xfe{\x00}\x00",
    ],
)
def test_what_is_no_json_is_told_apart(body: bytes) -> None:
    assert refusal(BulkCreate, body).code == "malformed_json"


REQUESTS = [endpoint.request for endpoint in ENDPOINTS if endpoint.request is not None]


def _patterns(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
        return own.union(*map(_patterns, schema.values()))
    return set().union(*map(_patterns, schema)) if isinstance(schema, list | tuple) else set()


def test_every_pattern_of_a_body_has_words() -> None:
    schemas, components = msgspec.json.schema_components([*REQUESTS, TicketUpdate])
    assert _patterns([*schemas, components]) == set(complaints.PATTERNS)


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        (ClearCache, b'{"tag": "nope"}', "Must be tickets, search or ticket:ID"),
        (ClearCache, b'{"prefix": "/elsewhere"}', "Must begin with /api/"),
        (NewTicket, b'{"title": " "}', "Must not be blank or contain"),
        (NewTicket, b'{"title": "a", "description": "\\u0000"}', "Must not contain the character U+0000"),
        (NewTicket, b'{"title": 1}', "Expected `string`, got `integer`"),
        (NewTicket, b'{"title": "a", "str": 1}', "Object contains unknown field `str`"),
        (TicketChanges, b'{"assigned_to": 1}', "Expected `UUID | null`, got `integer`"),
        (NewTicket, b'{"title": "a", "fields": {"": "x"}}', "The name of the member: Expected `string` of length >= 1"),
    ],
)
def test_what_is_wrong_is_said_in_a_readers_words(model: type, body: bytes, message: str) -> None:
    problem = refusal(model, body)
    assert problem.errors[0].message.startswith(message)
    assert problem.detail == problem.errors[0].message


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "The body is empty."),
        (b" \n", "The body is empty."),
        (b'{"title": "\xff"}', "The body is not UTF-8 (at byte 11)."),
        (b'{"title": "\\ud83d\\ude00 \\ud800"}', "lone surrogate, which is no character (at byte 24)"),
        (b'{"title": "\\ud800\\ud83d\\ude00"}', "lone surrogate, which is no character (at byte 11)"),
        (b'{"title": "\\ud83d \\ude00"}', "lone surrogate, which is no character (at byte 11)"),
        (b'{"title": "a\\udc00"}', "lone surrogate, which is no character (at byte 12)"),
        (b'{"title": "\\\\ud800"', "Input data was truncated"),
        (b'{"title": "a"}x', "trailing characters (byte 15)"),
    ],
)
def test_what_is_no_text_is_told_with_its_place(body: bytes, detail: str) -> None:
    assert detail in str(refusal(NewTicket, body).detail)


@pytest.mark.parametrize("body", [b'{"title": "\\ud800"}', b'{"title": "\xff"}', b'{"title": "a\nb"}'])
def test_text_that_is_no_text_is_malformed(body: bytes) -> None:
    assert refusal(NewTicket, body).code == "malformed_json"

"""Whatever is sent, the answer is an RFC 9457 problem with a stable code, and nothing is written."""

import gzip
import uuid
from collections.abc import Mapping
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.support.desk import Desk, exchange, problem

MEGABYTE = 1_048_576
DEEP = 100_000
SOMETHING = str(uuid.uuid4())
JSON = {"Content-Type": "application/json"}

COUNTS = """
SELECT (SELECT count(*) FROM tickets) AS tickets, (SELECT count(*) FROM comments) AS comments,
       (SELECT count(*) FROM api_keys) AS keys, (SELECT sum(last_ticket_number) FROM organizations) AS numbers,
       (SELECT sum(version) FROM tickets) AS versions"""

# The codes of bodies that are no JSON, or not the right one, wherever JSON is read. TICKET stands for a ticket's id.
NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "half an object": b'{"title": "a"',
    "a word": b"title",
    "a trailing comma": b'{"title": "a",}',
    "two values": b"{} {}",
    "single quotes": b"{'title': 'a'}",
    "NaN": b'{"title": NaN}',
    "invalid UTF-8": b'{"title": "\xff", "name": "\xff", "organization": "\xff", "body": "\xff"}',
    "a raw surrogate": b'{"title": "\xed\xa0\x80", "name": "\xed\xa0\x80", "organization": "\xed\xa0\x80"}',
    "UTF-16": '{"title": "a"}'.encode("utf-16"),
    "a control character": b'{"title": "\n", "name": "\n", "organization": "\n", "body": "\n"}',
}
WRONG_FORM: dict[str, bytes] = {
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "a huge number": b"1" * 10_000,
    "an empty object": b"{}",
    "an unknown field": b'{"title": "a", "name": "a", "body": "a", "admin": true}',
    "deep in an unknown field": b'{"admin": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"title":' * DEEP + b"1" + b"}" * DEEP,
}
WITH_BODY = (
    ("POST", "/api/session"),
    ("POST", "/api/keys"),
    ("POST", "/api/tickets"),
    ("POST", "/api/tickets/bulk"),
    ("PATCH", "/api/tickets/TICKET"),
    ("POST", "/api/tickets/TICKET/comments"),
)
_REFUSED: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    (
        "POST",
        "/api/tickets",
        (
            {"title": 5},
            {"title": None},
            {"title": ""},
            {"title": "   "},
            {"title": "a" * 301},
            {"title": "a\x00"},
            {"title": "a", "description": "b\x00"},
            {"title": "a", "description": "b" * 65_537},
            {"title": "a", "description": None},
            {"title": "a", "priority": "highest"},
            {"title": "a", "priority": 1},
            {"title": "a", "external_id": "x" * 201},
            {"title": "a", "external_id": ""},
            {"title": "a", "external_id": "\x00"},
            {"title": "a", "fields": []},
            {"title": "a", "fields": {"a": 10**400}},
            {"title": "a", "fields": {"a": "\x00"}},
            {"title": "a", "fields": {"\x00": "a"}},
            {"title": "a", "fields": {"k" * 65: "a"}},
            {"title": "a", "fields": {"a": "v" * 1001}},
            {"title": "a", "fields": {str(n): "v" for n in range(51)}},
            {"title": "a", "status": "solved"},
            {"title": "a", "organization_id": SOMETHING},
        ),
    ),
    ("POST", "/api/tickets/bulk", ({"tickets": []}, {"tickets": {}}, {"tickets": [{"title": "a"}] * 501})),
    (
        "PATCH",
        "/api/tickets/TICKET",
        (
            {"title": None},
            {"title": "\x00"},
            {"status": "gone"},
            {"assigned_to": "nobody"},
            {"assigned_to": SOMETHING},
            {"version": 7},
            {"external_id": "x"},
        ),
    ),
    (
        "POST",
        "/api/tickets/TICKET/comments",
        ({"body": ""}, {"body": " \n"}, {"body": "b" * 65_537}, {"body": "\x00"}, {"body": "b", "author_id": "x"}),
    ),
    ("POST", "/api/keys", ({"name": ""}, {"name": "n" * 101}, {"name": "\x00"}, {"name": ["n"]})),
    (
        "POST",
        "/api/session",
        (
            {"organization": "o", "email": "e", "password": 1},
            {"organization": "o", "email": "e", "password": ""},
            {"organization": "o", "email": "\x00", "password": "p"},
            {"organization": "\x00", "email": "e", "password": "p"},
            {"organization": "o", "email": "e", "password": "p" * 1001},
        ),
    ),
)
FIELDS = [(method, path, body) for method, path, bodies in _REFUSED for body in bodies]
# In order: method, path, headers, status, code.
REQUESTS: tuple[tuple[str, str, Mapping[str, str | bytes | None], int, str], ...] = (
    # routes and methods
    ("GET", "/", {}, 404, "route_not_found"),
    ("GET", "/api", {}, 404, "route_not_found"),
    ("GET", "/api/nothing", {}, 404, "route_not_found"),
    ("GET", "/api/tickets/", {}, 404, "route_not_found"),
    ("GET", "//api/tickets", {}, 404, "route_not_found"),
    ("GET", f"/api/tickets/{SOMETHING}/attachments", {}, 404, "route_not_found"),
    ("GET", f"/internal/tickets/{SOMETHING}", {}, 404, "route_not_found"),
    ("POST", "/internal/sign-in", {}, 404, "route_not_found"),
    ("GET", "/api/%ff", {}, 404, "route_not_found"),
    ("GET", "/api/%00", {}, 404, "route_not_found"),
    ("GET", "/api/tickets%0d%0aX-Injected:%201", {}, 404, "route_not_found"),
    ("PUT", "/api/tickets", {}, 405, "method_not_allowed"),
    ("DELETE", "/api/tickets/TICKET", {}, 405, "method_not_allowed"),
    ("PATCH", "/api/session", {}, 405, "method_not_allowed"),
    ("OPTIONS", "/api/keys", {}, 405, "method_not_allowed"),
    ("TRACE", "/api/tickets", {}, 405, "method_not_allowed"),
    # credentials
    ("GET", "/api/session", {"Authorization": None}, 401, "authentication_required"),
    ("GET", "/api/session", {"Authorization": ""}, 401, "authentication_required"),
    ("GET", "/api/session", {"Authorization": "Bearer"}, 401, "authentication_required"),
    ("GET", "/api/session", {"Authorization": "Basic YTpi"}, 401, "authentication_required"),
    ("GET", "/api/session", {"Authorization": "Bearer rdk_" + "x" * 43}, 401, "authentication_required"),
    ("GET", "/api/session", {"Authorization": "Bearer rdk_" + "x" * 4000}, 401, "authentication_required"),
    ("GET", "/api/session", {"Authorization": None, "Cookie": "relaydesk_session=x"}, 401, "authentication_required"),
    ("GET", "/api/session", {"Authorization": None, "Cookie": ';;=;,"{'}, 401, "authentication_required"),
    ("GET", "/api/tickets", {"Authorization": "Bearer rdk_x"}, 401, "authentication_required"),
    ("GET", "/api/search?q=a", {"Authorization": None}, 401, "authentication_required"),
    ("DELETE", f"/api/keys/{SOMETHING}", {"Authorization": None}, 401, "authentication_required"),
    ("DELETE", "/api/session", {}, 403, "permission_denied"),
    # what is no text
    ("GET", "/api/session", {"Authorization": b"Bearer rdk_\xff"}, 400, "malformed_request"),
    ("GET", "/api/session", {"Authorization": None, "Cookie": b"relaydesk_session=\xff"}, 400, "malformed_request"),
    ("GET", "/api/tickets", {"Relaydesk-Consistency": b"\xff"}, 400, "malformed_request"),
    ("GET", "/api/tickets", {"traceparent": b"\xff"}, 400, "malformed_request"),
    # parameters
    *(
        ("GET", f"/api/tickets?{query}", {}, 400, "invalid_parameter")
        for query in (
            *(f"limit={limit}" for limit in ("", "0", "-1", "101", "abc", "1.5", "1e1", "9" * 1000, "%EF%BC%91")),
            *(f"cursor={cursor}" for cursor in ("x", "AAAA", "%00", "%ff", "9" * 4000, "bnVsbA", "W10", "e30")),
            *(f"status={status}" for status in ("", "gone", "OPEN", "%00")),
        )
    ),
    *(
        ("GET", "/api/tickets", {"Relaydesk-Consistency": token}, 400, "invalid_parameter")
        for token in ("x", "1", "1-", "-1", "1-" + "f" * 17, "ffffffff-ffffffffffffffff")
    ),
    ("GET", "/api/search", {}, 400, "invalid_parameter"),
    ("GET", "/api/search?q=", {}, 400, "invalid_parameter"),
    ("GET", "/api/search?q=%20", {}, 400, "invalid_parameter"),
    ("GET", "/api/search?q=a%00", {}, 400, "invalid_parameter"),
    ("GET", "/api/search?q=" + "a" * 501, {}, 400, "invalid_parameter"),
    ("GET", "/api/search?q=a&limit=51", {}, 400, "invalid_parameter"),
    # ids
    *(
        ("GET", f"/api/tickets/{text}{suffix}", {}, 404, "ticket_not_found")
        for text in ("1", SOMETHING, SOMETHING + "0", "%00", "%ff", "..%2f..%2finternal%2fhealth", "%2e%2e")
        for suffix in ("", "/comments")
    ),
    (
        "GET",
        f"/api/tickets/..%2f..%2finternal%2ftickets%2fTICKET?organization_id={SOMETHING}",
        {},
        404,
        "ticket_not_found",
    ),
    ("DELETE", "/api/keys/1", {}, 404, "key_not_found"),
    ("DELETE", f"/api/keys/{SOMETHING}", {}, 404, "key_not_found"),
    ("DELETE", "/api/keys/..%2f..%2finternal", {}, 404, "key_not_found"),
)
IF_MATCH: tuple[tuple[str | bytes | None, int, str], ...] = (
    (None, 428, "precondition_required"),
    ("", 400, "invalid_parameter"),
    ("*", 400, "invalid_parameter"),
    ('"x"', 400, "invalid_parameter"),
    ('"-1"', 400, "invalid_parameter"),
    ('"' + "9" * 30 + '"', 400, "invalid_parameter"),
    ('W/"1"', 400, "invalid_parameter"),
    ('"1", "2"', 400, "invalid_parameter"),
    ("\u0663".encode(), 400, "invalid_parameter"),
    (b'"\xff"', 400, "malformed_request"),
    ('"999999"', 412, "version_mismatch"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ticket(desk: Desk) -> str:
    made = await desk.ask("POST", "/api/tickets", {"title": "A ticket"}, who=desk.acme)
    assert made.status == 201
    return str(made.json()["id"])


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def nothing_is_written(database: asyncpg.Pool, ticket: str) -> Any:
    before = await database.fetchrow(COUNTS)
    yield
    assert await database.fetchrow(COUNTS) == before


def short(value: object) -> str:
    return repr(value)[:60]


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
async def test_a_body_that_is_no_json(desk: Desk, ticket: str, method: str, path: str, body: bytes) -> None:
    reply = await desk.ask(method, path.replace("TICKET", ticket), body, {"If-Match": '"1"'}, who=desk.acme)
    # What is wrong first may also be a field of JSON that breaks off later.
    assert problem(reply) in {(400, "malformed_json"), (422, "validation_failed")}, reply.body
    if body in {NOT_JSON["nothing"], NOT_JSON["a word"], NOT_JSON["single quotes"], NOT_JSON["UTF-16"]}:
        assert problem(reply) == (400, "malformed_json")


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize("body", WRONG_FORM.values(), ids=WRONG_FORM)
async def test_a_body_of_the_wrong_form(desk: Desk, ticket: str, method: str, path: str, body: bytes) -> None:
    reply = await desk.ask(method, path.replace("TICKET", ticket), body, {"If-Match": '"1"'}, who=desk.acme)
    if method == "PATCH" and body == b"{}":
        assert reply.status == 200, "a change of nothing is allowed"
    else:
        assert problem(reply) == (422, "validation_failed"), reply.body


@pytest.mark.parametrize(("method", "path", "body"), FIELDS, ids=short)
async def test_a_field_that_is_refused(desk: Desk, ticket: str, method: str, path: str, body: Any) -> None:
    reply = await desk.ask(method, path.replace("TICKET", ticket), body, {"If-Match": '"1"'}, who=desk.acme)
    assert problem(reply) == (422, "validation_failed"), reply.body
    assert reply.json()["errors"] or body == {"tickets": []}


@pytest.mark.parametrize("nested", [b"[" * DEEP, b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP])
async def test_nesting_that_must_be_skipped_brings_no_process_down(desk: Desk, nested: bytes) -> None:
    """Bulk rows are skipped before they are judged, so the parser goes all the way down."""
    pids = [service.process.pid for service in (*desk.gateways, desk.tickets) if service.process]
    reply = await desk.ask("POST", "/api/tickets/bulk", b'{"tickets": [' + nested + b"]}", who=desk.acme)
    assert problem(reply) == (400, "malformed_json")
    reply = await desk.ask("POST", "/api/tickets/bulk", b'{"tickets": [{"title": ' + nested + b"}]}", who=desk.acme)
    assert problem(reply) == (400, "malformed_json")
    assert [s.process.pid for s in (*desk.gateways, desk.tickets) if s.process and s.alive] == pids


@pytest.mark.parametrize("text", ['"\\ud800"', '"\\udfff"', '"a\\ud800b"', '"\\udc00\\ud800"'])
@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_a_lone_surrogate(desk: Desk, ticket: str, method: str, path: str, text: str) -> None:
    body = f'{{"title": {text}, "name": {text}, "body": {text}, "organization": {text}, "tickets": {text}}}'.encode()
    reply = await desk.ask(method, path.replace("TICKET", ticket), body, {"If-Match": '"1"'}, who=desk.acme)
    assert problem(reply) in {(400, "malformed_json"), (422, "validation_failed")}, reply.body


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_1_mb(desk: Desk, ticket: str, method: str, path: str, *, chunked: bool) -> None:
    body = b'{"title": "' + b"a" * (MEGABYTE - 12) + b'"}'
    assert len(body) == MEGABYTE + 1
    path = path.replace("TICKET", ticket)
    reply = await desk.ask(method, path, body, {"If-Match": '"1"'}, who=desk.acme, chunked=chunked)
    assert problem(reply) == (413, "body_too_large")
    reply = await desk.ask(method, path, body[:-3] + b'"}', {"If-Match": '"1"'}, who=desk.acme, chunked=chunked)
    assert problem(reply) == (422, "validation_failed"), "1 MB is allowed"


async def test_a_body_that_only_says_it_is_large_is_not_waited_for(desk: Desk) -> None:
    reply = await desk.ask("POST", "/api/tickets", b"{}", {"Content-Length": str(10**12)}, who=desk.acme)
    assert problem(reply) == (413, "body_too_large")


async def test_a_body_that_unpacks_to_more_than_1_mb(desk: Desk) -> None:
    bomb = gzip.compress(b'{"title": "' + b"a" * 20_000_000 + b'"}')
    assert len(bomb) < MEGABYTE
    reply = await desk.ask("POST", "/api/tickets", bomb, {"Content-Encoding": "gzip"}, who=desk.acme)
    assert problem(reply) == (413, "body_too_large")


async def test_a_body_that_does_not_unpack(desk: Desk) -> None:
    reply = await desk.ask("POST", "/api/tickets", b"no gzip at all", {"Content-Encoding": "gzip"}, who=desk.acme)
    assert problem(reply) == (400, "malformed_request")


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "json"])
async def test_a_body_of_another_type(
    desk: Desk, ticket: str, method: str, path: str, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type, "If-Match": '"1"'}
    reply = await desk.ask(method, path.replace("TICKET", ticket), b'{"title": "a"}', headers, who=desk.acme)
    assert problem(reply) == (415, "unsupported_media_type")


@pytest.mark.parametrize(("method", "target", "headers", "status", "code"), REQUESTS, ids=short)
async def test_a_request_that_is_refused(  # noqa: PLR0917 (the table's columns)
    desk: Desk, ticket: str, method: str, target: str, headers: Mapping[str, str | bytes | None], status: int, code: str
) -> None:
    reply = await desk.ask(method, target.replace("TICKET", ticket), None, headers, who=desk.acme)
    assert problem(reply) == (status, code), reply.body
    if status == 401:
        assert reply.headers["www-authenticate"] == "Bearer"
    if status == 405:
        assert reply.headers["allow"]


@pytest.mark.parametrize(("if_match", "status", "code"), IF_MATCH, ids=short)
async def test_if_match(desk: Desk, ticket: str, if_match: str | bytes | None, status: int, code: str) -> None:
    target = f"/api/tickets/{ticket}"
    reply = await desk.ask("PATCH", target, {"title": "Changed"}, {"If-Match": if_match}, who=desk.acme)
    assert problem(reply) == (status, code), reply.body
    if status == 412:
        assert reply.json()["current_version"] == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"BREW /api/tickets HTTP/1.1\r\nHost: desk\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no TLS here\r\n\r\n",
        b"GET /api/\xff HTTP/1.1\r\nHost: desk\r\n\r\n",
        b"GET /api/search?q=\xff HTTP/1.1\r\nHost: desk\r\n\r\n",
        b"GET /api/session HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer rdk_in-a-log\x01\r\n\r\n",
        b"GET /api/session HTTP/1.1\r\nHost: desk\r\nCookie: " + b"in-a-log" * 2000 + b"\r\n\r\n",
        b"GET /api/session HTTP/1.1\r\nno colon in-a-log\r\n\r\n",
        b"POST /api/tickets HTTP/1.1\r\nHost: desk\r\nContent-Length: x\r\n\r\n",
        b"POST /api/tickets HTTP/1.1\r\nHost: desk\r\nContent-Encoding: zstd\r\nContent-Length: 1\r\n\r\na",
        b"POST /api/tickets HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    ],
    ids=short,
)
async def test_what_is_no_http(desk: Desk, request_bytes: bytes) -> None:
    reply = await exchange(desk.gateways[0].port, request_bytes)
    assert problem(reply) == (400, "malformed_request")
    assert "in-a-log" not in desk.all_logs(), "such bytes may be a credential"


@pytest.mark.parametrize(
    ("request_bytes", "said"),
    [
        (b"BREW /api/tickets HTTP/1.1\r\nHost: desk\r\n\r\n", "method is not one of HTTP's"),
        (b"GET /api/search?q=" + b"a" * 8190 + b" HTTP/1.1\r\nHost: desk\r\n\r\n", "longer than 8,190 bytes"),
        (b"GET /api/session HTTP/1.1\r\nHost: desk\r\nX: " + b"a" * 8191 + b"\r\n\r\n", "longer than 8,190 bytes"),
    ],
    ids=short,
)
async def test_a_head_that_cannot_be_taken_is_told_why(desk: Desk, request_bytes: bytes, said: str) -> None:
    assert said in (await exchange(desk.gateways[0].port, request_bytes)).json()["detail"]


async def test_no_request_was_an_internal_error(desk: Desk) -> None:
    """Runs last in this file: none of the above left a stack trace in a log."""
    assert "request_failed" not in desk.all_logs()
    assert "Traceback" not in desk.all_logs()

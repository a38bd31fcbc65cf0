"""Bad input: the right code, and nothing written."""

import json
import uuid
from typing import Any

import pytest

from libs.common.models import BODY_BYTES, BULK_ROWS
from tests.support.tickets import TicketsClient, TicketsDatabase

DEEP = b"[" * 100_000
JSON = {"Content-Type": "application/json"}
MALFORMED = [
    b"",
    b"{",
    b"title",
    b'{"title": "a"}}',
    b'{"title": "a",}',
    b"{'title': 'a'}",
    b'{"title": "\xff"}',
    b'{"title": "\\ud800"}',
    b'{"title": NaN}',
    b"\x00",
]
INVALID_TICKETS: list[Any] = [
    [],
    "a",
    None,
    7,
    {},
    {"title": None},
    {"title": 1},
    {"title": ""},
    {"title": " \n\t"},
    {"title": "a\x00b"},
    {"title": "x" * 301},
    {"title": "a", "description": "x" * 65_537},
    {"title": "a", "description": "\x00"},
    {"title": "a", "description": None},
    {"title": "a", "priority": "highest"},
    {"title": "a", "priority": 1},
    {"title": "a", "external_id": ""},
    {"title": "a", "external_id": "x" * 201},
    {"title": "a", "external_id": 10**400},
    {"title": "a", "fields": []},
    {"title": "a", "fields": {"": "v"}},
    {"title": "a", "fields": {"k" * 65: "v"}},
    {"title": "a", "fields": {"k": "v" * 1001}},
    {"title": "a", "fields": {"k": 1}},
    {"title": "a", "fields": {"k": {}}},
    {"title": "a", "fields": {str(n): "v" for n in range(51)}},
    {"title": "a", "status": "solved"},
    {"title": "a", "organization_id": str(uuid.uuid4())},
    {"title": "a", "number": 1},
]
INVALID_CHANGES: list[Any] = [
    [],
    {"title": ""},
    {"title": None},
    {"status": "new"},
    {"status": None},
    {"priority": None},
    {"assigned_to": "me"},
    {"assigned_to": 1},
    {"version": 7},
    {"fields": {}},
    {"external_id": "x"},
]


class Unchanged:
    """Counts rows before and after."""

    def __init__(self, desk: TicketsDatabase) -> None:
        self._desk = desk

    async def __aenter__(self) -> None:
        self._before = await self._desk.counts()

    async def __aexit__(self, *_error: object) -> None:
        assert await self._desk.counts() == self._before


async def refused(client: TicketsClient, status: int, code: str, method: str, path: str, **more: Any) -> None:
    answer = await client.request(method, path, **more)
    assert (answer.status, answer.code) == (status, code), more
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.body["type"] == f"urn:relaydesk:problem:{code}"
    assert answer.body["status"] == status


async def test_a_body_that_is_no_json(client: TicketsClient, desk: TicketsDatabase) -> None:
    ticket = (await client.create()).body
    path = f"/api/tickets/{ticket['id']}"
    async with Unchanged(desk):
        for body in MALFORMED:
            more: dict[str, Any] = {"data": body, "headers": JSON}
            await refused(client, 400, "malformed_json", "POST", "/api/tickets", **more)
            bulk = {"data": body.replace(b'{"title"', b'{"tickets": [{"title"'), "headers": JSON}
            await refused(client, 400, "malformed_json", "POST", "/api/tickets/bulk", **bulk)
            comment = {"data": body.replace(b'"title"', b'"body"'), "headers": JSON}
            await refused(client, 400, "malformed_json", "POST", f"{path}/comments", **comment)
            key = {"data": body.replace(b'"title"', b'"name"'), "headers": JSON}
            await refused(client, 400, "malformed_json", "POST", "/api/keys", **key)
            more["headers"] = JSON | {"If-Match": '"1"'}
            await refused(client, 400, "malformed_json", "PATCH", path, **more)


async def test_a_ticket_of_the_wrong_form(client: TicketsClient, desk: TicketsDatabase) -> None:
    async with Unchanged(desk):
        for body in INVALID_TICKETS:
            more = {"data": json.dumps(body), "headers": JSON}
            await refused(client, 422, "validation_failed", "POST", "/api/tickets", **more)


async def test_changes_of_the_wrong_form(client: TicketsClient, desk: TicketsDatabase) -> None:
    path = f"/api/tickets/{(await client.create()).body['id']}"
    async with Unchanged(desk):
        for body in INVALID_CHANGES:
            headers = {"If-Match": '"1"'}
            await refused(client, 422, "validation_failed", "PATCH", path, json=body, headers=headers)


async def test_a_bulk_of_the_wrong_form(client: TicketsClient, desk: TicketsDatabase) -> None:
    rows = [{"title": "x"}] * (BULK_ROWS + 1)
    async with Unchanged(desk):
        bodies: list[Any] = [
            [],
            {},
            {"tickets": None},
            {"tickets": []},
            {"tickets": rows},
            {"tickets": [], "dry": True},
        ]
        for body in bodies:
            await refused(client, 422, "validation_failed", "POST", "/api/tickets/bulk", json=body)


async def test_every_row_of_a_bulk_that_is_no_ticket_is_refused_by_itself(
    client: TicketsClient, desk: TicketsDatabase
) -> None:
    async with Unchanged(desk):
        answer = await client.request("POST", "/api/tickets/bulk", json={"tickets": INVALID_TICKETS})
    assert answer.status == 200
    assert [result["status"] for result in answer.body["results"]] == ["refused"] * len(INVALID_TICKETS)
    assert {result["problem"]["code"] for result in answer.body["results"]} == {"validation_failed"}


@pytest.mark.parametrize(
    "body", [{}, {"body": ""}, {"body": " "}, {"body": "x" * 65_537}, {"body": "\x00"}, {"text": "a"}]
)
async def test_a_comment_of_the_wrong_form(client: TicketsClient, desk: TicketsDatabase, body: Any) -> None:
    path = f"/api/tickets/{(await client.create()).body['id']}/comments"
    async with Unchanged(desk):
        await refused(client, 422, "validation_failed", "POST", path, json=body)


@pytest.mark.parametrize(
    "body", [b'{"tickets": ' + DEEP, b'{"tickets": [' + DEEP + b"]" * 100_000 + b"]}", b'{"tickets": [{"a": ' + DEEP]
)
async def test_a_body_that_is_nested_too_deeply(client: TicketsClient, desk: TicketsDatabase, body: bytes) -> None:
    async with Unchanged(desk):
        await refused(client, 400, "malformed_json", "POST", "/api/tickets/bulk", data=body, headers=JSON)


async def test_a_body_that_is_too_large(client: TicketsClient, desk: TicketsDatabase) -> None:
    body = json.dumps({"title": "a", "description": "x" * BODY_BYTES}).encode()

    async def chunks() -> Any:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    async with Unchanged(desk):
        for path in ("/api/tickets", "/api/tickets/bulk"):
            await refused(client, 413, "body_too_large", "POST", path, data=body, headers=JSON)
            await refused(client, 413, "body_too_large", "POST", path, data=chunks(), headers=JSON)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml"])
async def test_a_body_of_another_type(client: TicketsClient, desk: TicketsDatabase, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    body = b'{"title": "a"}'
    async with Unchanged(desk):
        await refused(client, 415, "unsupported_media_type", "POST", "/api/tickets", data=body, headers=headers)


async def test_unknown_routes_methods_tickets_and_keys(client: TicketsClient, desk: TicketsDatabase) -> None:
    nobody = f"/api/tickets/{uuid.uuid4()}"
    update = {"json": {"title": "x"}, "headers": {"If-Match": '"1"'}}
    async with Unchanged(desk):
        await refused(client, 404, "route_not_found", "GET", "/api/ticket")
        await refused(client, 404, "route_not_found", "POST", f"{nobody}/comments/1", json={})
        await refused(client, 405, "method_not_allowed", "PUT", nobody, json={})
        await refused(client, 405, "method_not_allowed", "DELETE", "/api/tickets")
        for path in (nobody, "/api/tickets/1", "/api/tickets/%00", "/api/tickets/%F0%9F%94%A5"):
            await refused(client, 404, "ticket_not_found", "GET", path)
            await refused(client, 404, "ticket_not_found", "PATCH", path, **update)
            await refused(client, 404, "ticket_not_found", "POST", f"{path}/comments", json={"body": "x"})
            await refused(client, 404, "ticket_not_found", "GET", f"{path}/comments")
        for key in (uuid.uuid4(), "1", "%00"):
            await refused(client, 404, "key_not_found", "DELETE", f"/api/keys/{key}")


@pytest.mark.parametrize("if_match", ["*", "1", 'W/"1"', '"1", "2"', '""', '"one"', '"99999999999999999999"'])
async def test_an_if_match_that_names_no_version(client: TicketsClient, desk: TicketsDatabase, if_match: str) -> None:
    path = f"/api/tickets/{(await client.create()).body['id']}"
    async with Unchanged(desk):
        headers = {"If-Match": if_match}
        await refused(client, 400, "invalid_parameter", "PATCH", path, json={"title": "x"}, headers=headers)


async def test_an_update_without_if_match_or_of_another_version(client: TicketsClient, desk: TicketsDatabase) -> None:
    path = f"/api/tickets/{(await client.create()).body['id']}"
    async with Unchanged(desk):
        await refused(client, 428, "precondition_required", "PATCH", path, json={"title": "x"})
        for version in (0, 2, 10**17):
            headers = {"If-Match": f'"{version}"'}
            await refused(client, 412, "version_mismatch", "PATCH", path, json={"title": "x"}, headers=headers)


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "00999"},
        {"limit": "-1"},
        {"limit": "ten"},
        {"limit": ""},
        {"status": "new"},
        {"status": ""},
        {"cursor": "x"},
        {"cursor": "A" * 32 + "\x00"},
        {"cursor": "_" * 32},
        {"cursor": "\u00e9" * 32},
    ],
)
async def test_a_parameter_that_is_not_valid(client: TicketsClient, query: dict[str, str]) -> None:
    await refused(client, 400, "invalid_parameter", "GET", "/api/tickets", params=query)


async def test_text_at_its_limits_is_taken_and_comes_back(client: TicketsClient) -> None:
    limits: dict[str, Any] = {
        "title": "\U0001f525" * 300,
        "description": "\x01" * 65_536,
        "external_id": "\u00e9" * 200,
        "fields": {f"{n:02}" + "k" * 62: "\u20ac" * 1000 for n in range(50)},
    }
    created = (await client.create(**limits)).body
    assert {name: created[name] for name in limits} == limits
    assert (await client.request("GET", f"/api/tickets/{created['id']}")).body == created


@pytest.mark.parametrize("text", ["a_" * 32_768, "<!--" * 16_384, "@" * 65_536, "a@1" * 21_845, "./" * 32_768])
async def test_text_that_a_parser_would_choke_on_is_taken(client: TicketsClient, text: str) -> None:
    created = (await client.create(description=text)).body
    assert created["description"] == text


async def test_sql_in_text_stays_text(client: TicketsClient) -> None:
    title = "'); DROP TABLE tickets; -- \\ \" $1 %s {0}"
    created = await client.create(title, external_id=title[:200], fields={title[:60]: title})
    read = (await client.request("GET", f"/api/tickets/{created.body['id']}")).body
    assert (read["title"], read["external_id"], read["fields"]) == (title, title[:200], {title[:60]: title})

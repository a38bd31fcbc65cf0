"""The OpenAPI document: valid, the one in the repository, and true to the models and error codes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from libs.common.problems import CODES, Problem
from services.gateway.description import openapi
from services.gateway.description.openapi_headers import HEADERS
from services.gateway.endpoints import ENDPOINTS
from services.tickets.routes_tickets import _expected_version

COMMITTED = Path(__file__).parents[2] / "docs" / "api" / "openapi.json"
DOCUMENT = openapi.document()
SCHEMAS = DOCUMENT["components"]["schemas"]


def _operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def test_the_committed_document_is_the_generated_one() -> None:
    generated = msgspec.json.format(msgspec.json.encode(openapi.document(), order="deterministic"), indent=2).decode()
    update = "python -m services.gateway openapi > docs/api/openapi.json"
    assert json.loads(COMMITTED.read_text()) == json.loads(generated), update
    assert COMMITTED.read_text() == generated + "\n", update


def test_the_document_is_valid_openapi_3_1() -> None:
    """Against the specification's meta schema, and what that cannot say."""
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def test_the_validator_sees_a_mistake() -> None:
    broken = json.loads(json.dumps(DOCUMENT))
    del broken["paths"]["/api/tickets"]["get"]["responses"]["200"]["description"]
    assert list(OpenAPIV31SpecValidator(broken).iter_errors())


@pytest.mark.parametrize("name", [name for name, schema in SCHEMAS.items() if "examples" in schema])
def test_an_example_is_of_its_model(name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    for example in SCHEMAS[name]["examples"]:
        OAS31Validator(schema, format_checker=OAS31Validator.FORMAT_CHECKER).validate(example)


def test_main_requests_and_answers_have_examples() -> None:
    bodies = [operation["requestBody"] for _where, operation in _operations() if "requestBody" in operation]
    names = {body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] for body in bodies}
    names |= {"Ticket", "TicketPage", "Comment", "CommentPage", "SearchResults", "Session", "ApiKey", "BulkReport"}
    assert {name for name in names if "examples" not in SCHEMAS[name]} == set()


@pytest.mark.parametrize(
    ("value", "taken"),
    [('"3"', True), ('"3-br"', True), ('"3-gzip"', True), ("*", False), ('W/"3"', False), ('"3", "4"', False)],
)
def test_if_match_is_described_as_it_is_taken(value: str, taken: bool) -> None:  # noqa: FBT001
    parameters = DOCUMENT["paths"]["/api/tickets/{ticket_id}"]["patch"]["parameters"]
    (described,) = (parameter for parameter in parameters if parameter["name"] == "If-Match")
    assert bool(re.search(described["schema"]["pattern"], value)) == taken
    request = make_mocked_request("PATCH", "/", {"If-Match": value})
    if taken:
        assert _expected_version(request) == 3
    else:
        with pytest.raises(Problem, match="one ETag as it was given out"):
            _expected_version(request)


def test_no_description_says_none() -> None:
    assert not re.search(r"(?<!-)\bNone\b", COMMITTED.read_text())


def test_every_tag_is_described_and_used() -> None:
    described = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
    assert described == {endpoint.tag for endpoint in ENDPOINTS}


def test_every_error_names_the_codes_it_may_have() -> None:
    for where, operation in _operations():
        for status, answer in operation["responses"].items():
            if "application/problem+json" not in answer.get("content", {}):
                continue
            told = answer["content"]["application/problem+json"]
            codes = told["schema"]["properties"]["code"]["enum"]
            assert {str(CODES[code][0]) for code in codes} == {status}, where
            assert set(told["examples"]) == set(codes), where
            if status in {"429", "503", "504"}:
                assert "Retry-After" in answer["headers"], where


def test_whatever_needs_a_credential_is_limited() -> None:
    for where, operation in _operations():
        if operation["security"]:
            assert {"401", "429"} <= set(operation["responses"]), where
            assert "csrf" in repr(operation["security"]) or where.startswith("get "), where


def test_headers_that_are_always_there_are_required() -> None:
    headers = DOCUMENT["components"]["headers"]
    assert set(headers) == {*HEADERS, *(f"{name}.optional" for name in HEADERS)}
    for name in HEADERS:
        assert headers[name]["required"]
        assert "required" not in headers[f"{name}.optional"]


def test_times_and_names_are_told_as_such() -> None:
    """msgspec's own schemas say neither."""
    assert SCHEMAS["Ticket"]["properties"]["created_at"]["format"] == "date-time"
    assert SCHEMAS["Ticket"]["properties"]["solved_at"]["anyOf"][0]["format"] == "date-time"
    assert SCHEMAS["Status"]["enum"] == ["open", "pending", "solved", "closed"]
    assert SCHEMAS["BulkCreate"]["properties"]["tickets"]["items"] == {"$ref": "#/components/schemas/NewTicket"}
    assert SCHEMAS["NewTicket"]["properties"]["title"]["maxLength"] == 300
    assert not any("\n    " in schema.get("description", "") for schema in SCHEMAS.values())


def test_links_lead_to_operations_and_their_parameters() -> None:
    parameters = {operation["operationId"]: operation["parameters"] for _where, operation in _operations()}
    links = 0
    for where, operation in _operations():
        for answer in operation["responses"].values():
            for link in answer.get("links", {}).values():
                found = {parameter["name"] for parameter in parameters[link["operationId"]]}
                assert {name.removeprefix("header.") for name in link["parameters"]} <= found, where
                links += 1
    assert links > 5

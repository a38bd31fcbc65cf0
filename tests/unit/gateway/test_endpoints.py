"""The endpoint table is what is served and what is documented."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from infra.local.credentials import Credentials
from libs.common import settings
from libs.common.problems import CODES
from services.gateway.app import build_app
from services.gateway.description import openapi
from services.gateway.endpoints import ENDPOINTS
from services.gateway.settings import Settings

PROBES = {("GET", "/livez"), ("GET", "/readyz"), ("GET", "/metrics")}
UNSAFE = {"post", "patch", "delete"}
STATUS = re.compile(r"[1-5][0-9]{2}")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def parameters(document: dict[str, Any], operation_id: str) -> dict[tuple[str, str], dict[str, Any]]:
    (found,) = (o for _path, _method, o in operations(document) if o["operationId"] == operation_id)
    return {(parameter["in"], parameter["name"]): parameter for parameter in found["parameters"]}


async def test_every_endpoint_has_its_route_and_every_route_its_endpoint(tmp_path: Any) -> None:
    keys = Credentials.load_or_generate(tmp_path / "credentials.json")
    environment = {
        "INTERNAL_SIGNING_KEY": keys.signing_key("gateway"),
        "INTERNAL_TRUSTED_KEYS": keys.trusted_keys(),
        "REDIS_URL": "redis://127.0.0.1:1",
        "CACHE_REDIS_URL": "redis://127.0.0.1:1",
    } | {f"GATEWAY_{name}_URL": "http://127.0.0.1:1" for name in ("TICKETS", "SEARCH", "NOTIFIER", "NOTIFIER_PUBLIC")}
    app: web.Application = build_app(settings.load(Settings, environment, prefix="GATEWAY_"))
    routes = [(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None]
    of = {method: {path for served_by, path in routes if served_by == method} for method in ("GET", "HEAD")}
    assert of["HEAD"] == of["GET"], "RFC 9110, section 9.1"
    served = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD" and not route.resource.canonical.endswith(".css")
    }
    assert served - PROBES == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}


def test_operations_are_unique() -> None:
    names = [endpoint.operation for endpoint in ENDPOINTS]
    assert len(set(names)) == len(names)


def test_every_endpoint_names_declared_problems_only() -> None:
    for endpoint in ENDPOINTS:
        assert set(endpoint.problems) <= set(CODES), endpoint.operation


def test_the_document_has_the_form_of_openapi_3_1(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert set(document) <= {"openapi", "info", "servers", "security", "paths", "components", "tags"}
    assert document["info"]["title"]
    assert document["info"]["version"]
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        assert method in {"get", "post", "patch", "put", "delete"}, where
        assert operation["summary"], where
        assert operation["responses"], where
        for status, response in operation["responses"].items():
            assert STATUS.fullmatch(status), where
            assert response["description"], where
            for media in response.get("content", {}).values():
                assert media["schema"], where
        in_path = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path)), where
        names = [(p["in"], p["name"]) for p in operation["parameters"]]
        assert len(set(names)) == len(names), where
        for parameter in operation["parameters"]:
            assert parameter["in"] in {"path", "query", "header"}, where
            assert parameter["schema"]["type"], where
            assert parameter["required"] or parameter["in"] != "path", where


def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    references: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                references.append(node["$ref"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert references
    for reference in references:
        target = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


def test_security_names_declared_schemes_and_unsafe_sessions_need_the_csrf_token(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    for _path, method, operation in operations(document):
        alternatives = operation.get("security", document["security"])
        assert {name for alternative in alternatives for name in alternative} <= set(schemes)
        if method in UNSAFE and operation["operationId"] != "sign_in":
            assert "csrf_token_invalid" in operation["responses"]["403"]["description"]
        if alternatives:
            assert "authentication_required" in operation["responses"]["401"]["description"]


def test_bodies_are_documented_with_all_their_problems(document: dict[str, Any]) -> None:
    with_body = [operation for _path, _method, operation in operations(document) if "requestBody" in operation]
    assert len(with_body) == 8
    for operation in with_body:
        assert operation["requestBody"]["content"]["application/json"]["schema"]
        assert {"400", "413", "415", "422"} <= set(operation["responses"]), operation["operationId"]


def test_paging_is_documented(document: dict[str, Any]) -> None:
    found = parameters(document, "list_tickets")
    assert found["query", "limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 25}
    assert found["query", "cursor"]["schema"] == {"type": "string"}
    assert "next_cursor" in found["query", "cursor"]["description"]
    assert found["query", "sort"]["schema"]["enum"] == ["created_at", "-created_at", "updated_at", "-updated_at"]
    for text in ("open", "closed,pending"):
        assert re.fullmatch(found["query", "status"]["schema"]["pattern"], text)
        assert not re.fullmatch(found["query", "priority"]["schema"]["pattern"], text)
    assert set(parameters(document, "list_comments")) >= {("query", "sort"), ("query", "limit"), ("query", "cursor")}
    assert parameters(document, "search")["query", "limit"]["schema"]["maximum"] == 50
    assert "Link" in document["paths"]["/api/tickets"]["get"]["responses"]["200"]["headers"]


def test_conditional_requests_and_consistency_are_documented(document: dict[str, Any]) -> None:
    assert parameters(document, "update_ticket")["header", "If-Match"]["required"]
    assert not parameters(document, "get_ticket")["header", "If-None-Match"]["required"]
    assert ("header", "Relaydesk-Consistency") in parameters(document, "get_ticket")
    responses = document["paths"]["/api/tickets/{ticket_id}"]["get"]["responses"]
    assert "304" in responses
    assert {"ETag", "Relaydesk-Consistency"} <= set(responses["200"]["headers"])


def test_every_creation_takes_an_idempotency_key(document: dict[str, Any]) -> None:
    no_creations = {"sign_in", "realtime_token", "clear_cache"}
    creations = [e for e in ENDPOINTS if e.method == "POST" and e.operation not in no_creations]
    assert len(creations) == 4
    for endpoint in creations:
        assert not parameters(document, endpoint.operation)["header", "Idempotency-Key"]["required"]
        responses = document["paths"][endpoint.path]["post"]["responses"]
        assert "Idempotency-Replayed" in responses[str(endpoint.status)]["headers"]
        assert "idempotency_key_in_use" in responses["409"]["description"]
        assert "idempotency_key_reused" in responses["422"]["description"]
        assert "invalid_parameter" in responses["400"]["description"]
    others = [e for e in ENDPOINTS if e not in creations]
    assert not any(("header", "Idempotency-Key") in parameters(document, e.operation) for e in others)


@pytest.mark.parametrize("internal", ["Relaydesk-Principal", "Relaydesk-As-Of", "Relaydesk-Read-Primary", "/internal"])
def test_nothing_internal_is_documented(document: dict[str, Any], internal: str) -> None:
    assert internal not in repr(document)

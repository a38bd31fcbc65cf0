"""The OpenAPI 3.1 document, made from the endpoint table and the typed models."""

from collections.abc import Sequence
from typing import Any

import msgspec

from libs.common.consistency import HEADER
from libs.common.problems import CODES, CONTENT_TYPE, ProblemDetails
from services.gateway.authentication import CSRF_HEADER
from services.gateway.endpoints import ENDPOINTS, Endpoint
from services.gateway.sessions import COOKIE

_AUTHENTICATED = ("authentication_required",)
_ALWAYS = ("malformed_request", "internal_error", "service_unavailable", "deadline_exceeded")
_BINARY_STATUSES = {204}
_IDEMPOTENCY_KEY = (
    "1 to 255 visible ASCII characters, best a UUID. A request that is sent again with its key within 24 hours is "
    "carried out once and answered as it was the first time."
)


def document() -> dict[str, Any]:
    """The whole document as plain data."""
    models = [m for e in ENDPOINTS for m in (e.request, e.response) if m is not None]
    schemas, components = msgspec.json.schema_components(
        [*models, ProblemDetails], ref_template="#/components/schemas/{name}"
    )
    by_model = dict(zip([*models, ProblemDetails], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, by_model)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Relaydesk",
            "version": "1.0.0",
            "description": (
                "An event-driven, multi-tenant ticket platform. Errors are RFC 9457 problem details with a stable "
                f"`code`. Answers about tickets carry `{HEADER}`; a request that sends it back is never answered "
                "with anything older."
            ),
        },
        "servers": [{"url": "/"}],
        "security": [{"api_key": []}, {"session": [], "csrf": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "api_key": {"type": "http", "scheme": "bearer", "description": "An API key (rdk_…)."},
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
                "csrf": {
                    "type": "apiKey",
                    "in": "header",
                    "name": CSRF_HEADER,
                    "description": "The session's `csrf_token`; needed for POST, PATCH and DELETE.",
                },
            },
        },
    }


def _operation(endpoint: Endpoint, by_model: dict[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": endpoint.summary}
    if endpoint.response is not None:
        answer["content"] = {"application/json": {"schema": by_model[endpoint.response]}}
    elif endpoint.status not in _BINARY_STATUSES:
        answer["content"] = {"application/json": {"schema": {"type": "object"}}}
    answer["headers"] = _answer_headers(endpoint)
    operation: dict[str, Any] = {
        "operationId": endpoint.operation,
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "parameters": _parameters(endpoint),
        "responses": {str(endpoint.status): answer, **_problems(endpoint)},
    }
    if endpoint.cached:
        operation["responses"]["304"] = {"description": "The representation in If-None-Match is current."}
    if endpoint.operation == "health":
        operation["responses"]["503"] = {**answer, "description": "Degraded"}
    if endpoint.request is not None:
        content = {"application/json": {"schema": by_model[endpoint.request]}}
        operation["requestBody"] = {"required": True, "content": content}
    if endpoint.public:
        operation["security"] = []
    return operation


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {
            "name": part.strip("{}"),
            "in": "path",
            "required": True,
            "schema": {"type": "string", "format": "uuid"},
        }
        for part in endpoint.path.split("/")
        if part.startswith("{")
    ]
    parameters += [
        {"name": name, "in": "query", "description": text, "required": name == "q", "schema": schema}
        for name, text, schema in endpoint.query
    ]
    if endpoint.if_match:
        parameters.append(_header("If-Match", "The version the change is based on, in quotes.", required=True))
    if endpoint.idempotent:
        parameters.append(_header("Idempotency-Key", _IDEMPOTENCY_KEY))
    if endpoint.cached:
        parameters.append(_header("If-None-Match", "An ETag; 304 if it is current."))
    if endpoint.consistency and endpoint.method == "GET":
        parameters.append(_header(HEADER, "The token of an earlier answer; nothing older is given."))
    return parameters


def _header(name: str, description: str, *, required: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": required,
        "description": description,
        "schema": {"type": "string"},
    }


def _answer_headers(endpoint: Endpoint) -> dict[str, Any]:
    names = {
        HEADER: endpoint.consistency,
        "ETag": endpoint.cached or endpoint.if_match,
        "Location": endpoint.operation == "create_ticket",
        "Idempotency-Replayed": endpoint.idempotent,
        "Link": any(name == "cursor" for name, _text, _schema in endpoint.query),
    }
    return {name: {"schema": {"type": "string"}} for name, present in names.items() if present}


def _problems(endpoint: Endpoint) -> dict[str, Any]:
    codes: Sequence[str] = (*endpoint.problems, *(() if endpoint.public else _AUTHENTICATED), *_ALWAYS)
    if not endpoint.public and endpoint.method != "GET":
        codes = (*codes, "csrf_token_invalid")
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(CODES[code][0], []).append(code)
    return {
        str(status): {
            "description": " ".join(f"`{code}`: {CODES[code][1]}" for code in found),
            "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for status, found in sorted(by_status.items())
    }

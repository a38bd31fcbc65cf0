"""The OpenAPI 3.1 document, made from the endpoint table and the typed models."""

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from libs.common.consistency import HEADER
from libs.common.problems import CODES, CONTENT_TYPE, Problem, ProblemDetails
from services.gateway.callers.authentication import CSRF_HEADER
from services.gateway.callers.sessions import COOKIE
from services.gateway.description.openapi_headers import (
    answer_headers,
    component_headers,
    is_limited,
    not_modified_headers,
    problem_headers,
)
from services.gateway.description.openapi_schemas import REFERENCE, schemas_of
from services.gateway.endpoints import ENDPOINTS, Endpoint

VERSION = "1.0.0"

_INTRODUCTION = (
    "An event-driven, multi-tenant ticket platform. All answers are JSON, all times UTC (RFC 3339), all ids UUIDs.\n\n"
    "**Credentials.** Programs send an API key: `Authorization: Bearer rdk_…`. People sign in at `POST /api/session` "
    f"and get a cookie; their requests that change something also carry the session's `csrf_token` in `{CSRF_HEADER}`."
    f"\n\n**Errors** are problem details (RFC 9457, `{CONTENT_TYPE}`) with a stable `code`. Act on the code, show the "
    f"`title`.\n\n**Consistency.** Answers about tickets carry `{HEADER}`. A request that sends it back is never "
    "answered with anything older, whichever gateway, cache or replica answers.\n\n"
    "**Changes** name the version they are based on (`If-Match` with the `ETag`), so none is lost. **Creations** may "
    "name an `Idempotency-Key` and can then be sent again after a time-out.\n\n"
    "**Pages** come with a `next_cursor` and the same as a `Link`; cursors are opaque.\n\n"
    "**Limits.** Requests count against a credential and its organization; `RateLimit` tells what is left, 429 "
    "`rate_limited` with `Retry-After` that nothing is.\n\n"
    "**Parameters** that an operation does not have are ignored; of one that comes twice the first counts. Fields of a "
    "body that it does not have are refused.\n\n"
    "A path that is not described here is answered with 404 `route_not_found`, another method with 405 "
    "`method_not_allowed` and `Allow`. `HEAD` is answered as `GET` is, without the body."
)

TAGS = {
    "session": "Signing in and out, API keys, and what was done with them.",
    "tickets": "Tickets, their comments and their history.",
    "search": "Finding tickets by their words.",
    "reports": "Counts and durations, from a replica of their own.",
    "realtime": "The way to the Socket.IO feed of the organization.",
    "operations": "The platform's health, its cache and this description.",
}

_ALWAYS = ("malformed_request", "internal_error")
_FROM_SERVICES = ("bad_gateway", "service_unavailable", "deadline_exceeded")
_IDEMPOTENCY_KEY = (
    "1 to 255 visible ASCII characters, best a UUID. A request that is sent again with its key within 24 hours is "
    "carried out once and answered as it was the first time."
)
_DESCRIPTIONS = {200: "The answer.", 201: "What was created.", 204: "Done; the answer has no body."}
_SAFE_METHODS = {"GET"}
_API_KEY: dict[str, list[str]] = {"api_key": []}
_SESSION: dict[str, list[str]] = {"session": []}
_SESSION_CHANGING: dict[str, list[str]] = {"session": [], "csrf": []}


def document() -> dict[str, Any]:
    """The whole document as plain data."""
    return cast("dict[str, Any]", msgspec.json.decode(msgspec.json.encode(_document())))  # tuples become lists


def _document() -> dict[str, Any]:
    models = [m for e in ENDPOINTS for m in (e.request, e.response) if m is not None]
    by_model, components = schemas_of([*models, ProblemDetails])
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, by_model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Relaydesk", "version": VERSION, "description": _INTRODUCTION},
        "servers": [{"url": "/", "description": "The gateway that serves this document."}],
        "security": [_API_KEY, _SESSION],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": component_headers(),
            "securitySchemes": {
                "api_key": {"type": "http", "scheme": "bearer", "description": "An API key (`rdk_…`)."},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": COOKIE,
                    "description": "What `POST /api/session` has set.",
                },
                "csrf": {
                    "type": "apiKey",
                    "in": "header",
                    "name": CSRF_HEADER,
                    "description": "The session's `csrf_token`, with every request that changes something.",
                },
            },
        },
    }


def _operation(endpoint: Endpoint, by_model: dict[Any, Any]) -> dict[str, Any]:
    responses = {str(endpoint.status): _answer(endpoint, by_model)}
    if endpoint.cached or endpoint.alone:
        responses["304"] = {
            "description": "What the client has, as told by `If-None-Match`, is current.",
            "headers": not_modified_headers(endpoint),
        }
    if endpoint.operation == "health":
        responses["503"] = {**responses["200"], "description": "Degraded: at least one check has failed."}
    operation: dict[str, Any] = {
        "operationId": endpoint.operation,
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "parameters": list(_parameters(endpoint)),
        "responses": dict(sorted({**_problems(endpoint), **responses}.items())),
        "security": _security(endpoint),
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    if endpoint.request is not None:
        content = {"application/json": {"schema": by_model[endpoint.request]}}
        operation["requestBody"] = {"required": endpoint.body_required, "content": content}
    return operation


def _answer(endpoint: Endpoint, by_model: dict[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": _DESCRIPTIONS[endpoint.status], "headers": answer_headers(endpoint)}
    if endpoint.status != 204:
        schema = {"type": "string" if endpoint.media_type.startswith("text/") else "object"}
        answer["content"] = {endpoint.media_type: {"schema": by_model.get(endpoint.response, schema)}}
    if endpoint.follows:
        answer["links"] = {
            operation: {"operationId": operation, "parameters": parameters}
            for operation, parameters in endpoint.follows
        }
    return answer


def _security(endpoint: Endpoint) -> list[dict[str, list[str]]]:
    if endpoint.public:
        return []
    session = _SESSION if endpoint.method in _SAFE_METHODS else _SESSION_CHANGING
    return [session] if endpoint.operation == "sign_out" else [_API_KEY, session]


def _parameters(endpoint: Endpoint) -> Iterator[dict[str, Any]]:
    for part in endpoint.path.split("/"):
        if part.startswith("{"):
            name = part.strip("{}")
            yield {
                "name": name,
                "in": "path",
                "required": True,
                "description": f"The {name.removesuffix('_id')}'s id.",
                "schema": {"type": "string", "format": "uuid"},
            }
    for name, text, schema in endpoint.query:
        yield {"name": name, "in": "query", "description": text, "required": name == "q", "schema": schema}
    if endpoint.if_match:
        text = (
            "The version that the change is based on: the `ETag` of an earlier answer as it is, or just the version in "
            "quotes. `*`, lists and weak tags are not taken."
        )
        yield _header("If-Match", text, r'^"[0-9]{1,18}(-(br|gzip))?"$', required=True)
    if endpoint.idempotent:
        yield _header("Idempotency-Key", _IDEMPOTENCY_KEY, "^[!-~]{1,255}$")
    if endpoint.cached or endpoint.alone:
        yield _header("If-None-Match", "An `ETag`, or several with commas between; 304 if it is current.")
    if endpoint.consistency and endpoint.method == "GET":
        text = "The token of an earlier answer; nothing older is given. Empty is as good as missing."
        yield _header(HEADER, text, "^([0-9a-f]{8}-[0-9a-f]{16})?$")


def _header(name: str, description: str, pattern: str = "", *, required: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": required,
        "description": description,
        "schema": {"type": "string", **({"pattern": pattern} if pattern else {})},
    }


def _problems(endpoint: Endpoint) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(_codes(endpoint)):
        by_status.setdefault(CODES[code][0], []).append(code)
    return {str(status): _problem(status, codes) for status, codes in by_status.items()}


def _codes(endpoint: Endpoint) -> Iterator[str]:
    """Every code that the endpoint may answer with."""
    yield from endpoint.problems
    if not endpoint.public:
        yield "authentication_required"
        if endpoint.method not in _SAFE_METHODS:
            yield "csrf_token_invalid"
    if endpoint.request is not None:
        yield "request_timeout"
    if is_limited(endpoint):
        yield "rate_limited"
        yield from _FROM_SERVICES
    yield from _ALWAYS


def _problem(status: int, codes: list[str]) -> dict[str, Any]:
    reference = {"$ref": REFERENCE.format(name=ProblemDetails.__name__)}
    answer: dict[str, Any] = {
        "description": " ".join(f"`{code}`: {CODES[code][1]}" for code in codes),
        "content": {
            CONTENT_TYPE: {
                "schema": {**reference, "properties": {"status": {"const": status}, "code": {"enum": codes}}},
                "examples": {code: {"value": Problem(code).details()} for code in codes},
            }
        },
    }
    if headers := problem_headers(status, codes):
        answer["headers"] = headers
    return answer

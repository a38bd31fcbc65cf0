"""The headers of answers as the OpenAPI document describes them, and which answer has which."""

from collections.abc import Iterator
from typing import Any

from libs.common.consistency import HEADER
from services.gateway.answers.stored import OUTCOME_HEADER
from services.gateway.endpoints import Endpoint

_TEXT: dict[str, Any] = {"type": "string"}

HEADERS: dict[str, dict[str, Any]] = {
    "Allow": {"description": "The methods that the path has.", "schema": _TEXT},
    "Cache-Control": {"description": "Whether and how long the answer may be kept (RFC 9111).", "schema": _TEXT},
    "ETag": {
        "description": "The version of what is answered. Send it as `If-None-Match` to be told whether it still is the "
        "current one; a ticket's goes into `If-Match` when the ticket is changed.",
        "schema": {"type": "string", "pattern": '^(W/)?"[^"]+"$'},
    },
    "Idempotency-Replayed": {
        "description": "`true` where a request was carried out before and this is the answer it was given then.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Link": {
        "description": 'The next page as `<URL>; rel="next"` (RFC 8288); missing on the last one.',
        "schema": {"type": "string", "pattern": '^<[^>]+>; rel="next"$'},
    },
    "Location": {
        "description": "The path of what was created.",
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "RateLimit": {
        "description": 'What is left of the tightest limit, `"name";r=REQUESTS;t=SECONDS`: so many requests now, and '
        "all of them again after so many seconds (draft-ietf-httpapi-ratelimit-headers).",
        "schema": _TEXT,
    },
    "RateLimit-Policy": {
        "description": 'The limits in force, each `"name";q=REQUESTS;w=SECONDS`.',
        "schema": _TEXT,
    },
    HEADER: {
        "description": "How new the answer is. A client that sends the newest token it has with its next request is "
        "never answered with anything older. Opaque.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f]{16}$"},
    },
    OUTCOME_HEADER: {
        "description": "Where the answer comes from: this gateway's memory (`l1`), the cache that all gateways share "
        "(`l2`), the service (`miss`), or an earlier answer while the service is away (`stale`).",
        "schema": {"type": "string", "enum": ["l1", "l2", "miss", "stale"]},
    },
    "Retry-After": {"description": "After how many seconds to try again.", "schema": {"type": "integer", "minimum": 0}},
    "Set-Cookie": {"description": "The session: `HttpOnly`, `SameSite=Lax`, `Secure`.", "schema": _TEXT},
    "WWW-Authenticate": {"description": "`Bearer`: an API key is asked for.", "schema": _TEXT},
}


def is_limited(endpoint: Endpoint) -> bool:
    """Whether requests count against a limit: whatever needs a credential, or tries one."""
    return not endpoint.public or endpoint.operation == "sign_in"


def component_headers() -> dict[str, Any]:
    """The headers for `components`: as `NAME` where one is always sent, as `NAME.optional` where it may be missing."""
    always = {name: {**header, "required": True} for name, header in HEADERS.items()}
    return always | {f"{name}.optional": dict(header) for name, header in HEADERS.items()}


def answer_headers(endpoint: Endpoint) -> dict[str, Any]:
    """Of the answer when all went well."""
    return _references(dict(_of_answer(endpoint)))


def not_modified_headers(endpoint: Endpoint) -> dict[str, Any]:
    """Of 304 (RFC 9110, section 15.4.5)."""
    names = {"ETag", "Cache-Control", HEADER, OUTCOME_HEADER}
    return _references({name: always for name, always in _of_answer(endpoint) if name in names})


def problem_headers(status: int, codes: list[str]) -> dict[str, Any]:
    """Of the problems of one status."""
    told: dict[str, bool] = {}
    if status in {429, 503, 504}:
        told["Retry-After"] = True
    if "idempotency_key_in_use" in codes:
        told["Retry-After"] = False
    if status == 401:
        told["WWW-Authenticate"] = codes == ["authentication_required"]
    if status == 429:
        told |= {"RateLimit": True, "RateLimit-Policy": True}
    return _references(told)


def _of_answer(endpoint: Endpoint) -> Iterator[tuple[str, bool]]:
    """Each header's name, and whether it is always there."""
    yield "Cache-Control", True
    if endpoint.cached or endpoint.alone or endpoint.if_match or endpoint.operation == "create_ticket":
        yield "ETag", True
    if endpoint.operation == "create_ticket":
        yield "Location", True
    if endpoint.consistency:
        yield HEADER, True
    if endpoint.cached:
        yield OUTCOME_HEADER, True
    if any(name == "cursor" for name, _text, _schema in endpoint.query):
        yield "Link", False
    if endpoint.idempotent:
        yield "Idempotency-Replayed", False
    if endpoint.operation in {"sign_in", "sign_out"}:
        yield "Set-Cookie", True
    if is_limited(endpoint):
        yield "RateLimit", False
        yield "RateLimit-Policy", False


def _references(told: dict[str, bool]) -> dict[str, Any]:
    return {
        name: {"$ref": f"#/components/headers/{name if always else f'{name}.optional'}"}
        for name, always in told.items()
    }

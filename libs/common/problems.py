"""Errors on the wire: RFC 9457 `application/problem+json` with a stable `code`.

Every code is declared here once, with its status and its title; clients may rely on both.
"""

import http
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from libs.common.complaints import complaint_of, unreadable

CONTENT_TYPE = "application/problem+json"

CODES: Mapping[str, tuple[int, str]] = {
    "malformed_json": (400, "The body is not valid JSON."),
    "malformed_request": (400, "The request cannot be understood."),
    "invalid_parameter": (400, "A path, query or header parameter is not valid."),
    "authentication_required": (401, "Credentials are missing or not valid any more."),
    "invalid_credentials": (401, "The organization, e-mail or password is wrong."),
    "permission_denied": (403, "The credentials do not permit this."),
    "csrf_token_invalid": (403, "The X-CSRF-Token header does not belong to the session."),
    "route_not_found": (404, "There is no such route."),
    "ticket_not_found": (404, "There is no such ticket."),
    "key_not_found": (404, "There is no such API key."),
    "method_not_allowed": (405, "The route does not support this method."),
    "request_timeout": (408, "The request did not arrive in time."),
    "external_id_taken": (409, "Another ticket of the organization has this external id."),
    "idempotency_key_in_use": (409, "Another request with this Idempotency-Key is being carried out."),
    "version_mismatch": (412, "The resource has changed since the version in If-Match."),
    "body_too_large": (413, "The body is larger than 1 MiB."),
    "unsupported_media_type": (415, "The body must be application/json."),
    "validation_failed": (422, "The body does not have the expected form."),
    "idempotency_key_reused": (422, "This Idempotency-Key came with another request before."),
    "precondition_required": (428, "An If-Match header with the current version is required."),
    "rate_limited": (429, "More requests than the limit allows; Retry-After says when to come again."),
    "internal_error": (500, "The request failed for a reason on our side."),
    "bad_gateway": (502, "A part of the platform gave an answer that cannot be used."),
    "service_unavailable": (503, "A part of the platform that this request needs is not available."),
    "deadline_exceeded": (504, "A part of the platform did not answer in time."),
}

# What a client does about each; docs/api/errors.md and the API's reference page show it.
ADVICE: Mapping[str, str] = {
    "malformed_json": "Mend the program that makes the body; `detail` says where parsing ended.",
    "malformed_request": "Mend the request: its head must be HTTP and UTF-8, its body encoded as it says.",
    "invalid_parameter": "Mend the parameter that `detail` names. Drop cursors and tokens that you did not just get.",
    "authentication_required": "Sign in again or use another API key; sending the same again does not help.",
    "invalid_credentials": "Ask the person again. It is not told which of the three is wrong.",
    "permission_denied": "Ask somebody with the right, or use the other kind of credential that `detail` names.",
    "csrf_token_invalid": "Send the `csrf_token` of `GET /api/session` with everything that changes something.",
    "route_not_found": "Look the path up; a slash at the end makes another path.",
    "ticket_not_found": "Forget the id: the ticket is not in the credentials' organization.",
    "key_not_found": "Forget the id: the key is not the organization's, or another user's.",
    "method_not_allowed": "Use a method of the `Allow` header.",
    "request_timeout": "Send it again; if it stays, the connection is too slow or the body shorter than announced.",
    "external_id_taken": "Find the ticket that has it, or choose another external id.",
    "idempotency_key_in_use": "Wait for `Retry-After` and send the same again: the first answer may be there then.",
    "version_mismatch": "Get the resource again, decide anew, and send the new version; `current_version` names it.",
    "body_too_large": "Send less at once, such as fewer rows.",
    "unsupported_media_type": "Send JSON and say so: `Content-Type: application/json`.",
    "validation_failed": "Mend the field that the `pointer` in `errors` leads to. Only the first one is told.",
    "idempotency_key_reused": "Use a new key for every new request; an old one only to send the same bytes again.",
    "precondition_required": "Get the resource and send its `ETag` as `If-Match`.",
    "rate_limited": "Wait for `Retry-After`; `RateLimit` tells earlier how much is left.",
    "internal_error": "Try again later with the same Idempotency-Key, and report the `trace_id` if it stays.",
    "bad_gateway": "Ask for less at once, such as a smaller `limit`; report the `trace_id` if it stays.",
    "service_unavailable": "Wait for `Retry-After` and try again; a creation with its Idempotency-Key.",
    "deadline_exceeded": "It may have been carried out. Send a creation again only with its Idempotency-Key.",
}

RETRY_AFTER_SECONDS = 2


class FieldError(msgspec.Struct, frozen=True):
    """One field that was refused; `pointer` is an RFC 6901 JSON pointer into the body."""

    pointer: str
    message: str


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of an error answer."""

    type: str
    title: str
    status: int
    code: str
    detail: str | None = None
    errors: Sequence[FieldError] = ()
    trace_id: str | None = None
    current_version: int | None = None


class Problem(Exception):  # noqa: N818 (the RFC's term)
    """An error that is told to the client.

    Raises:
        KeyError: for a code that is not declared in `CODES`.
    """

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        current_version: int | None = None,
    ) -> None:
        self.status, self.title = CODES[code]
        super().__init__(f"{code}: {detail or self.title}")
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.current_version = current_version
        if self.status in {http.HTTPStatus.SERVICE_UNAVAILABLE, http.HTTPStatus.GATEWAY_TIMEOUT}:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))

    def details(self, trace_id: str | None = None) -> ProblemDetails:
        return ProblemDetails(
            type=f"urn:relaydesk:problem:{self.code}",
            title=self.title,
            status=self.status,
            code=self.code,
            detail=self.detail,
            errors=self.errors,
            trace_id=trace_id,
            current_version=self.current_version,
        )


def unavailable(part: str) -> Problem:
    """503 with `Retry-After`: `part` names what is not available, in a user's words."""
    return Problem("service_unavailable", f"{part} is not available at the moment; please try again.")


def validation(error: msgspec.ValidationError, body: bytes = b"", model: Any = None) -> Problem:
    """Translate msgspec's complaint about a `body` that is no `model` into 422 with a JSON pointer."""
    complaint = complaint_of(error, body, model)
    return Problem("validation_failed", complaint.message, errors=[FieldError(complaint.pointer, complaint.message)])


def decode_body(decoder: "msgspec.json.Decoder[Any]", body: bytes) -> Any:
    """Decode a request's body with a typed decoder.

    Raises:
        Problem: `malformed_json` (400) or `validation_failed` (422).
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise validation(error, body, decoder.type) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem("malformed_json", unreadable(error, body)) from error
    except RecursionError as error:
        raise Problem("malformed_json", "The body is nested too deeply.") from error

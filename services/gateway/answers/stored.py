"""Cached answers as bytes: encoded, with their heads, written without being built again."""

import time
from email.utils import formatdate

from libs.common.cache.local import Entry
from libs.common.consistency import HEADER
from libs.common.security import SECURITY_HEADERS
from services.gateway.answers.codings import CODINGS, IDENTITY, encoded

OUTCOME_HEADER = "Relaydesk-Cache"
_REASONS = {200: "OK", 304: "Not Modified", 404: "Not Found"}
_END = b"\r\n\r\n"
_date = (0, b"")


def body_of(entry: Entry, coding: str) -> bytes:
    """The entry's body in a coding; encoded once."""
    if coding == IDENTITY:
        return entry.body
    body = entry.forms.get(coding)
    if body is None:
        body = entry.forms[coding] = encoded(entry.body, coding)
    return body


def headers_of(entry: Entry, coding: str, outcome: str, *, not_modified: bool) -> dict[str, str]:
    """The headers of an answer from the cache, `Content-Length` and `Date` excepted."""
    headers = {**entry.headers, "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding", **SECURITY_HEADERS}
    headers[OUTCOME_HEADER] = outcome
    if entry.consistency is not None:
        headers[HEADER] = entry.consistency.token()
    if coding != IDENTITY:
        headers["ETag"] = etag_in(entry.headers["ETag"], coding)
        headers["Content-Encoding"] = coding
    if not_modified:
        del headers["Content-Type"]
        headers.pop("Content-Encoding", None)
    return headers


def etag_in(etag: str, coding: str) -> str:
    """The entity tag in a coding: another representation has another strong validator (RFC 9110, section 8.8.3)."""
    return f'{etag[:-1]}-{coding}"'


def matches(if_none_match: str, etag: str) -> bool:
    """RFC 9110, section 13.1.2: weak comparison with a list or `*`; the same state in any coding is not modified."""
    if if_none_match == etag:  # what a client sends that has it from us
        return True
    current = {"*", etag, *(etag_in(etag, coding) for coding in CODINGS)}
    return any(item.strip().removeprefix("W/") in current for item in if_none_match.split(","))


def whole(entry: Entry, coding: str, *, not_modified: bool, more: bytes = b"") -> bytes:
    """The entry, or that it is not modified, as all the bytes of an answer from L1.

    `more`: further header lines, each ending with CR LF.
    """
    form = "304" if not_modified else f"whole-{coding}"
    rest = entry.forms.get(form)
    if rest is None:
        rest = entry.forms[form] = _rest(entry, coding, not_modified=not_modified)
    return _HEADS[304 if not_modified else entry.status] + _date_line() + more + rest


def _rest(entry: Entry, coding: str, *, not_modified: bool) -> bytes:
    body = b"" if not_modified else body_of(entry, coding)
    headers = headers_of(entry, coding, "l1", not_modified=not_modified)
    if not not_modified:
        headers["Content-Length"] = str(len(body))
    return "\r\n".join(f"{name}: {value}" for name, value in headers.items()).encode() + _END + body


_HEADS = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in _REASONS.items()}


def _date_line() -> bytes:
    """The line of this second."""
    global _date  # noqa: PLW0603 (a cache of one)
    now = int(time.time())
    if _date[0] != now:
        _date = (now, f"Date: {formatdate(now, usegmt=True)}\r\n".encode())
    return _date[1]

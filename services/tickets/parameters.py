"""What the routes take from a request, and what they send with the answers to reads."""

import datetime as dt
import enum
import uuid
from collections.abc import Iterable
from typing import Any, TypeVar

from aiohttp import web

from libs.common.consistency import AS_OF_HEADER, HEADER, PRIMARY_HEADER, Position, Requirement
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Principal, Verifier
from libs.common.problems import Problem
from services.tickets.cursors import PAGE_LIMIT
from services.tickets.database import Found

_DEFAULT_LIMIT = 25

Name = TypeVar("Name", bound=enum.StrEnum)


def principal_of(request: web.Request, verifier: Verifier) -> Principal:
    """Who asks, as the gateway has signed.

    Raises:
        Problem: `authentication_required` (401) for a missing, forged, expired or misdirected token.
    """
    return verifier.principal(request.headers.get(PRINCIPAL_HEADER))


def ticket_id_of(request: web.Request) -> uuid.UUID:
    """The ticket a path names; what is no UUID names none."""
    text = request.match_info["ticket_id"]
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise Problem("ticket_not_found", f"There is no ticket {text[:64]!r}.") from error


def requirement_of(request: web.Request) -> Requirement:
    """What the answer must include: the request's consistency token, and whether only the primary will do."""
    token = request.headers.get(HEADER)
    position = Position.from_token(token) if token else None
    return Requirement(position, primary=PRIMARY_HEADER in request.headers)


def limit_of(request: web.Request) -> int:
    """How many rows the page may have: `limit`, 1 to 100, 25 by default."""
    text = request.query.get("limit")
    if text is None:
        return _DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= PAGE_LIMIT):
        raise Problem("invalid_parameter", f"limit must be a whole number from 1 to {PAGE_LIMIT}.")
    return int(text)


def names_of(request: web.Request, name: str, among: type[Name]) -> frozenset[Name]:
    """The names of a parameter, one or several with commas between; none when it is not there."""
    text = request.query.get(name)
    if text is None:
        return frozenset()
    try:
        return frozenset(among(part) for part in text.split(","))
    except ValueError as error:
        raise _one_of(f"{name} must be one or several, with commas between, of", among) from error


def name_of(request: web.Request, name: str, among: type[Name], default: Name) -> Name:
    """The one name of a parameter."""
    return optional_name_of(request, name, among) or default


def optional_name_of(request: web.Request, name: str, among: type[Name]) -> Name | None:
    """The one name of a parameter; None when it is not there."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        return among(text)
    except ValueError as error:
        raise _one_of(f"{name} must be one of", among) from error


def user_of(request: web.Request, name: str, *names: str) -> uuid.UUID | None:
    """The user's id of a parameter; None when it is not there. `names` are what else the public API takes there."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise Problem("invalid_parameter", f"{name} must be a user's id (a UUID) or {' or '.join(names)}.") from error


def day_of(request: web.Request, name: str) -> dt.date | None:
    """The date of a parameter, ISO 8601 (2026-01-31); None when it is not there."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        day = dt.date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:  # ISO 8601 has other forms, such as 2026-W05-6
        raise Problem("invalid_parameter", f"{name} must be a date such as 2026-01-31.")
    return day


def read_headers(found: Found[Any]) -> dict[str, str]:
    """The consistency tokens of an answer."""
    return {HEADER: found.consistency.token(), AS_OF_HEADER: found.as_of.token()}


def page_headers(request: web.Request, found: Found[Any], next_cursor: str | None) -> dict[str, str]:
    """The same of a page, with a link to the next one (RFC 8288)."""
    headers = read_headers(found)
    if next_cursor:
        following = request.rel_url.update_query(cursor=next_cursor)
        headers["Link"] = f'<{following}>; rel="next"'
    return headers


def _one_of(what: str, among: Iterable[str]) -> Problem:
    return Problem("invalid_parameter", f"{what} {', '.join(among)}.")

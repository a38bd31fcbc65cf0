"""Keyset cursors: where a page of a list ended, in a form that clients only hand back.

A cursor is a place in one list's order, so it is bound to that list: its filters and its sort.
"""

import base64
import binascii
import datetime as dt
import hashlib
import uuid
from typing import NamedTuple

from libs.common.problems import Problem

PAGE_LIMIT = 100  # rows
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_CHECK_BYTES = 8
_PLACE_BYTES = 24


class Place(NamedTuple):
    """Where a page of a list that is ordered by time ended: at the row with this time and this id."""

    at: dt.datetime
    id: uuid.UUID


START = Place(dt.datetime(1, 1, 1, tzinfo=dt.UTC), uuid.UUID(int=0))
END = Place(dt.datetime(9999, 1, 1, tzinfo=dt.UTC), uuid.UUID(int=2**128 - 1))


def write_cursor(of: str, place: bytes) -> str:
    """The cursor for `place` in the list that `of` describes."""
    return base64.urlsafe_b64encode(_check(of) + place).decode().rstrip("=")


def read_cursor(of: str, text: str, size: int) -> bytes:
    """The place of `size` bytes that a cursor holds.

    Raises:
        Problem: `invalid_parameter` (400) for text that is no cursor, or one of another list.
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    if len(raw) != _CHECK_BYTES + size:
        raise Problem("invalid_parameter", "The cursor is not one that this API gave out.")
    if raw[:_CHECK_BYTES] != _check(of):
        raise Problem("invalid_parameter", "The cursor belongs to a list with another sort or other filters.")
    return raw[_CHECK_BYTES:]


def write_place(of: str, place: Place) -> str:
    """The cursor for `place` in the list that `of` describes."""
    return write_cursor(of, moment_bytes(place.at) + place.id.bytes)


def read_place(of: str, text: str) -> Place:
    """The place that a cursor holds.

    Raises:
        Problem: as `read_cursor`.
    """
    raw = read_cursor(of, text, _PLACE_BYTES)
    return Place(moment_of(raw[:8]), uuid.UUID(bytes=raw[8:]))


def moment_bytes(moment: dt.datetime) -> bytes:
    """Microseconds since 1970, 8 bytes."""
    return ((moment - _EPOCH) // _MICROSECOND).to_bytes(8, "big", signed=True)


def moment_of(raw: bytes) -> dt.datetime:
    """The moment of `moment_bytes`.

    Raises:
        Problem: `invalid_parameter` (400) for one beyond what a date can hold.
    """
    try:
        return _EPOCH + int.from_bytes(raw, "big", signed=True) * _MICROSECOND
    except OverflowError as error:
        raise Problem("invalid_parameter", "The cursor is not one that this API gave out.") from error


def _check(of: str) -> bytes:
    return hashlib.sha256(of.encode()).digest()[:_CHECK_BYTES]

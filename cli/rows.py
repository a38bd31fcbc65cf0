"""What the readers hand on: rows of text under column names."""

from typing import Any

import msgspec


class Row(msgspec.Struct, frozen=True, gc=False):
    """A row that could be read; `line` is where it begins, counted from 1."""

    line: int
    values: dict[str, str]


class BadRow(msgspec.Struct, frozen=True, gc=False):
    """A row that could not be read: lines `line` to `last_line` are left out."""

    line: int
    reason: str
    last_line: int


def cell(value: Any) -> str:
    """A JSON value as text: null is empty, true is `true`, lists and objects stay JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()

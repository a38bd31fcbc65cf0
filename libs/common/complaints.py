"""What msgspec complains about in a body, in a reader's words and with an RFC 6901 pointer to it.

msgspec names types and patterns as Python does, and neither the member of an object that is wrong nor, for text that is
no UTF-8, the place in the body.
"""

import itertools
import re
from typing import Any, NamedTuple

import msgspec

from libs.common.cache import administration
from libs.common.models import NO_NUL, NOT_BLANK

_PLACE = re.compile(r" - at `(key` in `)?(\$[^`]*)`$")  # how a complaint about a part of the body ends
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_PATTERN = re.compile(r"Expected `str` matching regex (['\"].*)")
_ANY_MEMBER = "[...]"
_MOST_MEMBERS = 1000  # of an object that are looked at for the one that is wrong
_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "uuid": "UUID"}
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def _pattern_of(text: Any) -> str:
    return str(text.__metadata__[0].pattern)


PATTERNS = {
    NO_NUL: "Must not contain the character U+0000",
    NOT_BLANK: "Must not be blank or contain the character U+0000",
    _pattern_of(administration.Tag): "Must be tickets, search or ticket:ID, the ID a UUID in lower case",
    _pattern_of(administration.Prefix): "Must begin with /api/ and hold visible ASCII characters only",
}


class Complaint(NamedTuple):
    """`pointer` leads to what is wrong; of a member that is missing, to where it should be."""

    pointer: str
    message: str


def complaint_of(error: msgspec.ValidationError, body: bytes = b"", model: Any = None) -> Complaint:
    """Translate what is wrong with a body's form. From `body` and its `model` a wrong member of an object is named."""
    message = told = str(error)
    place = _PLACE.search(message)
    path, key = (place[2], bool(place[1])) if place else ("$", False)
    if place:
        message = message[: place.start()]
    pointer = "".join(f"/{name}" for name in re.findall(r"[^.\[\]]+", path.replace(_ANY_MEMBER, ""))[1:])
    for form in (_UNKNOWN, _MISSING):
        if named := form.fullmatch(message):
            return Complaint(f"{pointer}/{_escaped(named[1])}", message)
    if key or path.endswith(_ANY_MEMBER):
        member = _member(pointer.strip("/"), told, body, model)
        pointer += "" if member is None else f"/{_escaped(member)}"
    message = _worded(message)
    return Complaint(pointer, f"The name of the member: {message}" if key else message)


def unreadable(error: Exception, body: bytes) -> str:
    """Why a body is no JSON, one sentence."""
    if not body.strip():
        return "The body is empty."
    if isinstance(error, UnicodeDecodeError):
        try:
            body.decode()
        except UnicodeDecodeError as within:
            return f"The body is not UTF-8 (at byte {within.start})."
    if (position := _lone_surrogate(body)) is not None:
        return f"The body holds a lone surrogate, which is no character (at byte {position})."
    return str(error)


def _worded(message: str) -> str:
    if pattern := _PATTERN.fullmatch(message):
        return next((words for text, words in PATTERNS.items() if repr(text) == pattern[1]), "Has not the right form")
    if message.startswith("Expected `"):
        return re.sub(
            r"`[^`]*`", lambda types: re.sub("[a-z]+", lambda one: _TYPES.get(one[0], one[0]), types[0]), message
        )
    return message


def _member(name: str, told: str, body: bytes, model: Any) -> str | None:
    """The first member of the object `name` that is complained about in the same way when it stands there alone."""
    if model is None:
        return None
    try:
        members = msgspec.json.decode(body)[name].items()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    for member, value in itertools.islice(members, _MOST_MEMBERS):
        try:
            msgspec.convert({name: {member: value}}, model)
        except msgspec.ValidationError as error:
            if str(error) == told:
                return str(member)
    return None


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _lone_surrogate(body: bytes) -> int | None:
    """Where the first escaped surrogate stands that is not half of a pair."""
    high: re.Match[bytes] | None = None
    for escape in _ESCAPE.finditer(body):
        unit = int(escape[1], 16) if escape[1] else 0
        is_low = 0xDC00 <= unit <= 0xDFFF
        if high is not None:
            if not (is_low and escape.start() == high.end()):
                return high.start()
            high = None
        elif is_low:
            return escape.start()
        if 0xD800 <= unit <= 0xDBFF:
            high = escape
    return None if high is None else high.start()

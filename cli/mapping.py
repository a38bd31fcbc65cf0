"""Which column becomes which part of a ticket."""

from collections.abc import Mapping, Sequence

import msgspec

from cli.errors import UsageError
from libs.common.models import TEXT_LENGTH, TITLE_LENGTH, NewTicket, Priority
from libs.common.problems import validation

EXTERNAL_ID_LENGTH = 200
FIELD_COUNT = 50
FIELD_NAME_LENGTH = 64
FIELD_VALUE_LENGTH = 1000

TARGETS = ("title", "description", "priority", "external_id")
_LIMITS = {"title": TITLE_LENGTH, "description": TEXT_LENGTH, "external_id": EXTERNAL_ID_LENGTH}
_PRIORITIES = frozenset(Priority)
_GITHUB = {"title": "title", "description": "body", "external_id": "external_id"}


class Refusal(Exception):  # noqa: N818 (the report's word)
    """A row that cannot be a ticket; the message says why."""


def parse_options(options: Sequence[str]) -> dict[str, str]:
    """`title=COLUMN` options as target → column.

    Raises:
        UsageError: for another form, an unknown target, or a target given twice.
    """
    mapping: dict[str, str] = {}
    for option in options:
        target, separator, column = option.partition("=")
        if not separator or not column or target not in TARGETS:
            raise UsageError(
                f"--map {option} is not understood: write --map TARGET=COLUMN, where TARGET is one of "
                f"{', '.join(TARGETS)}."
            )
        if target in mapping:
            raise UsageError(f"--map {target}=… is given twice.")
        mapping[target] = column
    return mapping


def choose(mapping: Mapping[str, str], columns: Sequence[str], *, described: bool) -> "Mapped":
    """Check the mapping against the file; targets that are not given take the column of their own name.

    Without `columns` (no row could be read) nothing is checked. `described` rows carry the columns that are not
    mapped in the description as well as in the fields.

    Raises:
        UsageError: for a column that the file does not have, or no title.
    """
    shown = ", ".join(columns[:30]) + (", …" if len(columns) > 30 else "")
    defaults = {target: target for target in TARGETS} if described else _GITHUB
    result = {target: column for target, column in defaults.items() if column in columns} | dict(mapping)
    if columns:
        for target, column in mapping.items():
            if column not in columns:
                raise UsageError(f"--map {target}={column}: there is no such column. The file has: {shown}.")
        if "title" not in result:
            raise UsageError(f"No column is called title; choose one by --map title=COLUMN. The file has: {shown}.")
    return Mapped({"title": "title", **result}, described=described)


class Mapped:
    """Turns rows into tickets."""

    def __init__(self, columns: Mapping[str, str], *, described: bool) -> None:
        self._title = columns["title"]
        self._description = columns.get("description", "")
        self._priority = columns.get("priority", "")
        self._external_id = columns.get("external_id", "")
        self._mapped = frozenset(columns.values())
        self._described = described

    def ticket(self, values: Mapping[str, str]) -> NewTicket:
        """Build the ticket of a row.

        Columns that are not mapped and not empty go to `fields` as far as these can hold them (50 entries, names of
        64 and values of 1,000 characters); of a described row all of them stand in the description too, as
        `name: value` lines, of another only those that the fields cannot hold.

        Raises:
            Refusal: when the row does not make a valid ticket.
        """
        fields: dict[str, str] = {}
        lines: list[str] = []
        for name, value in values.items():
            if not value or name in self._mapped:
                continue
            fits = (
                len(value) <= FIELD_VALUE_LENGTH
                and len(name) <= FIELD_NAME_LENGTH
                and len(fields) < FIELD_COUNT
                and bool(name.strip())
            )
            if fits:
                fields[name] = value
            if self._described or not fits:
                lines.append(f"{name}: {value}")
        text = values.get(self._description, "")
        parts = {
            "title": values.get(self._title, "").strip(),
            "description": "\n\n".join(filter(None, (text, "\n".join(lines)))),
            "priority": values.get(self._priority, "").strip().lower() or Priority.NORMAL,
            "external_id": values.get(self._external_id, "").strip() or None,
            "fields": fields,
        }
        self._check(parts)
        try:
            return msgspec.convert(parts, NewTicket)
        except msgspec.ValidationError as error:
            problem = validation(error).errors[0]
            raise Refusal(f"{problem.pointer.strip('/') or 'row'}: {problem.message}") from error

    def _check(self, parts: Mapping[str, object]) -> None:
        """The usual reasons, in words that name the column."""
        if not parts["title"]:
            raise Refusal(f"no title (column {self._title} is empty or missing)")
        if parts["priority"] not in _PRIORITIES:
            raise Refusal(f"priority {parts['priority']!r} is not one of {', '.join(Priority)}")
        for part, limit in _LIMITS.items():
            value = parts[part]
            if isinstance(value, str) and len(value) > limit:
                raise Refusal(f"{part} has {len(value):,} characters, at most {limit:,} are possible")

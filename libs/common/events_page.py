"""The tables of docs/api/events.md, made from the declarations: `python -m libs.common.events_page docs/api/events.md`.

The page's own words stay; what stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->` is replaced.
"""

import enum
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec.inspect as declared

from libs.common.asyncapi import HEADERS, OPTIONAL_HEADERS
from libs.common.events import EventTypes, TicketEventData

_SIMPLE: dict[type[declared.Type], str] = {
    declared.UUIDType: "UUID",
    declared.DateTimeType: "RFC 3339, UTC",
    declared.StrType: "string",
    declared.IntType: "integer",
}


def page(text: str) -> str:
    """`text` with its tables made anew.

    Raises:
        KeyError: for a name between marks that no table has.
    """
    tables = {"types": _types(), "headers": _headers(), "fields": _fields()}

    def replaced(mark: re.Match[str]) -> str:
        return f"<!-- generated: {mark[1]} -->\n{tables[mark[1]]}<!-- end of {mark[1]} -->"

    return re.sub(r"<!-- generated: (\w+) -->\n.*?<!-- end of \1 -->", replaced, text, flags=re.DOTALL)


def _types() -> str:
    return _table(("type", "when"), ((f"`{name}`", event_type.summary) for name, event_type in EventTypes.ALL.items()))


def _headers() -> str:
    return _table(("header", "value"), ((f"`{name}`", _header(name, schema)) for name, schema in HEADERS.items()))


def _header(name: str, schema: dict[str, Any]) -> str:
    told = [f"`{schema['const']}`."] if "const" in schema else []
    told += [schema["description"]] if "description" in schema else []
    told += ["It may be absent."] if name in OPTIONAL_HEADERS else []
    return " ".join(told)


def _fields() -> str:
    return _table(("field", "value"), _struct(declared.type_info(TicketEventData), ""))


def _struct(found: declared.Type, prefix: str) -> Iterator[tuple[str, str]]:
    if not isinstance(found, declared.StructType):
        return
    for field in found.fields:
        inner, optional = _without_none(field.type)
        missing = "; there in `ticket.commented.v1` alone" if field.name == "comment" else " or null"
        name = f"{prefix}{field.encode_name}"
        yield f"`{name}`", _type(inner) + (missing if optional else "")
        yield from _struct(inner, f"{name}.")


def _without_none(found: declared.Type) -> tuple[declared.Type, bool]:
    if not isinstance(found, declared.UnionType):
        return found, False
    (inner,) = (kind for kind in found.types if not isinstance(kind, declared.NoneType))
    return inner, True


def _type(found: declared.Type) -> str:
    if isinstance(found, declared.Metadata):
        return _type(found.type)
    if isinstance(found, declared.EnumType):
        choices: type[enum.Enum] = found.cls
        return "one of " + ", ".join(f"`{choice.value}`" for choice in choices)
    if isinstance(found, declared.ListType):
        return f"array, each item: {_type(found.item_type)}"
    if isinstance(found, declared.DictType):
        return f"object, each value: {_type(found.value_type)}"
    return _SIMPLE.get(type(found), "object")


def _table(heads: tuple[str, ...], lines: Iterator[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, ("---",) * len(heads), *lines)).replace(
        "| --- | --- |", "|---|---|"
    )


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")

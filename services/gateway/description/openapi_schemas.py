"""The models' JSON schemas: msgspec's own, and what it leaves out."""

import enum
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import msgspec.inspect as declared

from libs.common import models
from libs.common.cache import administration
from services.gateway.description.examples import EXAMPLES

REFERENCE = "#/components/schemas/{name}"

# Rows that a service judges one by one, so that one which is wrong is refused by itself, and what each should be.
ROWS: dict[type, tuple[type, str]] = {
    models.BulkCreate: (
        models.NewTicket,
        "Rows are judged one by one: one that is not valid is refused in the report, the others are created.",
    ),
    models.BulkUpdate: (
        models.TicketUpdate,
        "Rows are judged one by one: one that is not valid, or not at its version, is refused in the report.",
    ),
}

# Models whose fields exclude one another, all of them optional.
AT_MOST_ONE_FIELD: tuple[type, ...] = (administration.ClearCache,)


def schemas_of(types: Sequence[Any]) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """The schema of each type, and the components they refer to."""
    wanted = [*types, *(row for model, (row, _text) in ROWS.items() if model in types)]
    schemas, components = msgspec.json.schema_components(wanted, ref_template=REFERENCE)
    for found in _named_types(wanted):
        if isinstance(found, declared.EnumType):
            _finish_enum(components[found.cls.__name__], found.cls)
        elif isinstance(found, declared.StructType):
            _finish_struct(components[found.cls.__name__], found)
    for model in AT_MOST_ONE_FIELD:
        if model in types:
            components[model.__name__]["maxProperties"] = 1
    for model, (row, text) in ROWS.items():
        if model in types:
            component = components[model.__name__]
            component["description"] = text
            component["properties"]["tickets"]["items"] = {"$ref": REFERENCE.format(name=row.__name__)}
    return dict(zip(wanted, schemas, strict=True)), dict(sorted(components.items()))


def _finish_enum(schema: dict[str, Any], names: type[enum.Enum]) -> None:
    schema["type"] = "string"
    schema["enum"] = [member.value for member in names]  # in the order of their declaration
    _finish_text(schema)


def _finish_struct(schema: dict[str, Any], struct: declared.StructType) -> None:
    _finish_text(schema)
    if struct.cls in EXAMPLES:
        schema["examples"] = [msgspec.json.decode(msgspec.json.encode(EXAMPLES[struct.cls]))]
    for field in struct.fields:
        if any(isinstance(part, declared.DateTimeType) for part in _parts(field.type)):
            _finish_time(schema["properties"][field.encode_name])


def _finish_time(schema: dict[str, Any]) -> None:
    for part in schema.get("anyOf", [schema]):
        if part.get("type") == "string":
            part["format"] = "date-time"


def _finish_text(schema: dict[str, Any]) -> None:
    """One paragraph a blank line, whatever the docstring's lines."""
    if "description" in schema:
        text = inspect.cleandoc(schema["description"])
        schema["description"] = "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _named_types(types: Sequence[Any]) -> Iterator[declared.Type]:
    """Every struct and enumeration that the types hold, each once."""
    seen: set[type] = set()
    waiting: list[declared.Type] = [declared.type_info(found) for found in types]
    while waiting:
        found = waiting.pop()
        if isinstance(found, declared.StructType | declared.EnumType):
            if found.cls in seen:
                continue
            seen.add(found.cls)
            yield found
        waiting += _inner(found)


def _inner(found: declared.Type) -> list[declared.Type]:
    if isinstance(found, declared.StructType):
        return [part for field in found.fields for part in _parts(field.type)]
    if isinstance(found, declared.ListType):
        return _parts(found.item_type)
    if isinstance(found, declared.DictType):
        return [*_parts(found.key_type), *_parts(found.value_type)]
    return []


def _parts(found: declared.Type) -> list[declared.Type]:
    """A union's types, or the one."""
    if isinstance(found, declared.Metadata):
        return _parts(found.type)
    return [part for one in found.types for part in _parts(one)] if isinstance(found, declared.UnionType) else [found]

"""docs/api/events.md tells what a subscriber meets."""

import json
import re

import msgspec

from libs.common import asyncapi
from libs.common.events import TOPIC, EventTypes, TicketEventData, decode
from libs.common.events_page import page
from services.notifier.consumers import GROUP
from services.search.consumers import INDEX_GROUP, INVALIDATE_GROUP
from tests.support.pages import CHECKOUT, DOCS, rows, sections, words

TEXT = (DOCS / "api" / "events.md").read_text(encoding="utf-8")
PAGE = sections("api/events.md")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_tables_are_the_generated_ones() -> None:
    assert page(TEXT) == TEXT, "python -m libs.common.events_page docs/api/events.md"
    assert TEXT.count("<!-- generated: ") == 3


def test_a_table_that_was_changed_by_hand_is_made_anew() -> None:
    changed = TEXT.replace("| `ticket.created.v1` |", "| `ticket.born.v1` |", 1)
    assert changed != TEXT
    assert page(changed) == TEXT


def test_the_types_are_the_declared_ones() -> None:
    assert [row[0] for row in rows(PAGE["Events"])] == list(EventTypes.ALL)


def test_the_headers_are_the_declared_ones() -> None:
    assert [row[0] for row in rows(PAGE["Headers"])] == list(asyncapi.HEADERS)


def test_the_example_is_an_event_and_shows_every_field() -> None:
    value = _blocks("json")[0].encode()
    lines = _blocks("")[0].replace("headers", " ").splitlines()[1:]
    headers = [(name, text.encode()) for name, _, text in (line.strip().partition("=") for line in lines)]
    event = decode(headers, value)
    assert {name for name, _text in headers} == set(asyncapi.HEADERS)
    assert json.loads(value) == json.loads(msgspec.json.encode(event.data))
    assert set(json.loads(value)) == set(TicketEventData.__struct_fields__)
    assert f"key      {event.data.ticket.id}\n" in TEXT


def test_the_dead_letters_are_those_of_the_consumer_groups() -> None:
    section = PAGE["Dead letters"]
    assert {GROUP, INDEX_GROUP, INVALIDATE_GROUP} <= set(words(section))
    assert f"{TOPIC}.<group>.dlq" in words(section)
    source = (CHECKOUT / "libs" / "common" / "kafka.py").read_text(encoding="utf-8")
    assert [row[0] for row in rows(section)] == re.findall(r'"(dlq_\w+)"', source)


def test_the_subscriber_is_a_program_for_the_topic() -> None:
    """It was run against the platform; here it is kept from rotting."""
    program = _blocks("python")[0]
    compile(program, "events.md", "exec")
    assert f'"{TOPIC}"' in program
    assert "import libs" not in program
    assert set(re.findall(r'headers\["(\w+)"\]', program)) <= set(asyncapi.HEADERS)
    assert all(f"--topic {TOPIC}" in line for line in _blocks("sh"))

"""docs/api/errors.md lists every code with what a client does about it."""

import json
import re

from libs.common.errors_page import page
from libs.common.problems import ADVICE, CODES, ProblemDetails
from tests.support.pages import DOCS, rows, sections, words

TEXT = (DOCS / "api" / "errors.md").read_text(encoding="utf-8")
PAGE = sections("api/errors.md")


def test_every_code_has_its_advice() -> None:
    assert list(ADVICE) == list(CODES), "libs/common/problems.py: ADVICE names every code, in the order of CODES"
    assert all(text.endswith(".") for text in ADVICE.values())


def test_the_table_is_the_generated_one() -> None:
    assert page(TEXT) == TEXT, "python -m libs.common.errors_page docs/api/errors.md"
    assert [row[0] for row in rows(PAGE["Codes"])] == list(CODES)


def test_a_table_that_was_changed_by_hand_is_made_anew() -> None:
    changed = TEXT.replace("| `ticket_not_found` |", "| `ticket_lost` |", 1)
    assert changed != TEXT
    assert page(changed) == TEXT


def test_the_members_are_the_declared_ones() -> None:
    told = {name for line in PAGE["Form"].splitlines() if line.startswith("| `") for name in words(line.split("|")[1])}
    assert told | {"type"} == set(ProblemDetails.__struct_fields__)


def test_the_example_is_a_problem() -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    example = json.loads(block)
    assert set(example) <= set(ProblemDetails.__struct_fields__)
    assert (example["status"], example["title"]) == CODES[example["code"]]
    assert example["type"] == f"urn:relaydesk:problem:{example['code']}"

"""The API's reference page: whole, with links that lead somewhere, and safe to show."""

import copy
import re
import shlex
from html.parser import HTMLParser
from typing import Any

import pytest

from libs.common.models import NOT_BLANK
from libs.common.problems import ADVICE, CODES
from services.gateway.description import openapi, reference
from services.gateway.description.pages import Description
from services.gateway.description.reference_text import curl, json_block, limits_of, text, type_of

DOCUMENT = openapi.document()
PAGE = reference.page(DOCUMENT, "/styles.css")


class Elements(HTMLParser):
    """What stands in a page: start tags with their attributes, and whether each is ended in its turn."""

    VOID = frozenset({"meta", "link", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.words = ""
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.words += data

    def values(self, name: str) -> list[str]:
        return [value for _tag, attributes in self.found if (value := attributes.get(name)) is not None]


ELEMENTS = Elements(PAGE)
IDS = ELEMENTS.values("id")


def test_every_operation_model_and_error_has_its_place() -> None:
    operations = [o["operationId"] for methods in DOCUMENT["paths"].values() for o in methods.values()]
    models = [f"model-{name}" for name in DOCUMENT["components"]["schemas"]]
    errors = [f"error-{code}" for code in CODES]
    assert len(operations) > 20
    assert set(IDS) >= {*operations, *models, *errors}
    assert len(IDS) == len(set(IDS))


def test_every_link_leads_somewhere() -> None:
    links = [attributes["href"] for tag, attributes in ELEMENTS.found if tag == "a"]
    assert len(links) > 200
    assert {link for link in links if link != "/api/openapi.json"} <= {f"#{name}" for name in IDS}


def test_all_that_the_document_says_is_on_the_page() -> None:
    told = " ".join(ELEMENTS.words.split())
    for path, methods in DOCUMENT["paths"].items():
        assert path in told
        for operation in methods.values():
            for words in (operation["summary"], *(p["description"] for p in operation["parameters"])):
                assert " ".join(words.replace("`", "").split()) in told
    assert all(" ".join(advice.replace("`", "").split()) in told for advice in ADVICE.values())


def test_the_page_runs_nothing_and_asks_nobody_else() -> None:
    assert {tag for tag, _attributes in ELEMENTS.found} & {
        "script",
        "iframe",
        "object",
        "img",
        "form",
        "style",
    } == set()
    assert not [name for _tag, attributes in ELEMENTS.found for name in attributes if name.startswith("on")]
    assert ELEMENTS.values("style") == []
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", PAGE)


def test_words_of_the_document_never_become_markup() -> None:
    hostile: Any = copy.deepcopy(DOCUMENT)
    attack = "</p><script>alert(1)</script>`<b>` **<i>**"
    hostile["info"]["description"] = attack
    hostile["paths"]["/api/tickets"]["get"]["summary"] = attack
    hostile["paths"]["/api/tickets"]["get"]["parameters"][0]["description"] = attack
    hostile["components"]["schemas"]["Ticket"]["description"] = attack
    hostile["components"]["schemas"]["Ticket"]["examples"][0]["title"] = attack
    found = {tag for tag, _attributes in Elements(reference.page(hostile, '"><script>')).found}
    assert found == {tag for tag, _attributes in ELEMENTS.found}


def test_a_command_is_what_a_shell_takes_for_it() -> None:
    block = curl("PATCH", "/api/x?q=a", {"If-Match": '"2"', "Authorization": "Bearer $KEY"}, {"title": "it's <new>"})
    command = Elements(block).words
    assert shlex.split(command.replace("\\\n", " ")) == [
        *("curl", "-X", "PATCH", "$DESK/api/x?q=a", "-H", 'If-Match: "2"', "-H", "Authorization: Bearer $KEY"),
        *("-d", '{"title": "it\'s <new>"}'),
    ]


def test_json_keeps_its_text_in_colour() -> None:
    block = json_block({"a": 'say "yes": <b>\\', "n": -1.5, "t": [True, None]})
    assert (
        Elements(block).words
        == '{\n  "a": "say \\"yes\\": <b>\\\\",\n  "n": -1.5,\n  "t": [\n    true,\n    null\n  ]\n}'
    )
    assert block.count('class="key"') == 3
    assert block.count('class="string"') == 1
    assert block.count('class="number"') == 3


@pytest.mark.parametrize(
    ("schema", "kind", "limits"),
    [
        ({"type": "string", "format": "uuid"}, "string (uuid)", ""),
        ({"anyOf": [{"type": "string", "maxLength": 9}, {"type": "null"}]}, "string or null", "at most 9 characters"),
        ({"type": "integer", "minimum": 1, "maximum": 1000}, "integer", "1\u20131,000"),
        ({"type": "string", "pattern": NOT_BLANK}, "string", "not blank, without U+0000"),
        ({"type": "string", "pattern": r"^[^\x00]*$"}, "string", "without U+0000"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 2}, "array of string", "at most 2 items"),
        ({"type": "array", "prefixItems": [{}, {}], "items": False}, "array of 2", ""),
        ({"enum": ["a", "b"]}, "<code>a</code> | <code>b</code>", ""),
        ({"$ref": "#/components/schemas/Ticket"}, '<a href="#model-Ticket">Ticket</a>', ""),
        ({"type": "string", "default": "x"}, "string", "default <code>x</code>"),
    ],
)
def test_a_schema_in_words(schema: dict[str, Any], kind: str, limits: str) -> None:
    assert (type_of(schema), limits_of(schema)) == (kind, limits)


def test_code_and_bold_text() -> None:
    assert text("a `b` **c** <d>") == "a <code>b</code> <strong>c</strong> &lt;d&gt;"


def test_the_stylesheets_path_changes_with_it() -> None:
    assert re.fullmatch(r"/api/docs/reference\.[0-9a-f]{16}\.css", Description().stylesheet)

"""Pages of docs/ as tests read them: sections, table rows, words in backticks."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"

_CODE = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^(#{2,3}) (.+)$")


def sections(page: str) -> dict[str, str]:
    """The text below each heading of level 2 or 3, by the heading's words; below a level 2 up to its first level 3."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        heading = _HEADING.match(line)
        if heading:
            assert heading[2] not in found, f"{page} has two headings {heading[2]!r}"
            lines = found[heading[2]] = []
        else:
            lines.append(line)
    return {name: "\n".join(text) for name, text in found.items()}


def rows(section: str) -> list[list[str]]:
    """The cells of every table row whose first cell is a word in backticks; that cell comes without them."""
    found = []
    for line in section.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            found.append([words(cells[0])[0], *cells[1:]])
    return found


def words(text: str) -> list[str]:
    """What stands in backticks."""
    return _CODE.findall(text)

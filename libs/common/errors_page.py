"""The table of docs/api/errors.md, made from the codes: `python -m libs.common.errors_page docs/api/errors.md`.

The page's own words stay; what stands between `<!-- generated: codes -->` and `<!-- end of codes -->` is replaced.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from libs.common.problems import ADVICE, CODES

_MARKED = re.compile(r"(?<=<!-- generated: codes -->\n).*?(?=<!-- end of codes -->)", re.DOTALL)


def page(text: str) -> str:
    """`text` with its table made anew."""
    return _MARKED.sub(lambda _old: "".join(_lines()), text)


def _lines() -> Iterator[str]:
    yield "| code | status | title | what to do |\n|---|---|---|---|\n"
    for code, (status, title) in CODES.items():
        yield f"| `{code}` | {status} | {title} | {ADVICE[code]} |\n"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")

"""Text as the index takes it: without what PostgreSQL cannot store, and without what makes its parser quadratic.

Measured with PostgreSQL 18.6: `to_tsvector` and `ts_headline` take quadratic time for runs without white space such
as `a@1`, `a_`, `/~` and `./` (4,000 characters 80 to 290 ms), in older releases for runs of `@` as well, and for
repeated `<!--`. Of 16,000 characters prepared here none of 20,000 tried patterns took more than 30 ms.
"""

import html
import re

TEXT_LENGTH = 65_536
MARK_BEGIN = "\x01"
MARK_END = "\x02"

# Only these end a run for PostgreSQL's parser whatever the database's locale.
_RUN = re.compile(r"[^ \t\n\r\f\v]{100}")


def storable(text: str) -> str:
    """`text` without U+0000, which PostgreSQL's text cannot hold."""
    return text.replace("\x00", "\ufffd")


def searchable(text: str) -> str:
    """`text` with a space after every 100 characters that have none, and with no beginning of an HTML comment."""
    return _RUN.sub(r"\g<0> ", storable(text).replace("<!", "< "))


def capped(text: str) -> str:
    """The first 65,536 characters, prepared by `searchable`."""
    return searchable(text[:TEXT_LENGTH])[:TEXT_LENGTH]


def appended(comments: str, body: str) -> str:
    """The text of a ticket's comments with one more: its newest 65,536 characters.

    Adding comments one by one gives the same as adding them all at once.
    """
    body = capped(body)
    return (f"{comments}\n{body}" if comments else body)[-TEXT_LENGTH:]


def highlight(title: str, text: str) -> str:
    """HTML of two headlines in which the marks are control characters: what was found, in `<mark>`.

    Parts without a mark are left out; the title is shown when both have none.
    """
    marked = [part for part in (title, text) if MARK_BEGIN in part] or [title]
    escaped = html.escape(" … ".join(marked))
    return escaped.replace(MARK_BEGIN, "<mark>").replace(MARK_END, "</mark>")

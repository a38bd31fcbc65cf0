import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.search.texts import TEXT_LENGTH, appended, capped, highlight, searchable


@given(st.lists(st.text(max_size=40)), st.integers(0, 3))
def test_only_the_newest_comments_are_kept(bodies: list[str], long: int) -> None:
    comments = ""
    for body in [*("x" * TEXT_LENGTH for _ in range(long)), *bodies]:
        comments = appended(comments, body)
    assert len(comments) <= TEXT_LENGTH
    assert comments.endswith("\n".join(capped(body) for body in bodies).lstrip("\n"))


@pytest.mark.parametrize("bad", ["@" * 5000, "a@1" * 5000, "a_" * 5000, "/~" * 5000, "\u00a0_" * 5000])
def test_no_run_is_longer_than_postgres_takes_gladly(bad: str) -> None:
    assert max(map(len, re.split(r"[ \t\r\n\f\v]", searchable(bad)))) <= 100


def test_ordinary_text_stays_as_it_is() -> None:
    text = "Mail to ann.lee@example.com fails: see https://example.com/a_b?c=d <b>now</b>\n"
    assert searchable(text) == text


def test_html_comments_and_nul_are_taken_out() -> None:
    assert searchable("a<!-- b\x00") == "a< -- b\ufffd"


@given(st.text("ab<>&\"'\x01\x02/", max_size=60), st.text("ab<>&\"'\x01\x02/", max_size=60))
def test_a_highlight_holds_no_markup_but_marks(title: str, text: str) -> None:
    rest = highlight(title, text).replace("<mark>", "").replace("</mark>", "")
    assert not set("<>\"'") & set(rest)
    assert html.unescape(rest) in {
        " … ".join(parts).replace("\x01", "").replace("\x02", "") for parts in ((title, text), (title,), (text,))
    }

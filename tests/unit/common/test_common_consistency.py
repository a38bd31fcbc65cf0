"""Consistency tokens: positions in the write-ahead log as opaque text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.consistency import Position
from libs.common.problems import Problem

positions = st.builds(Position, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))


@given(positions, positions)
def test_tokens_order_as_positions_do(one: Position, other: Position) -> None:
    assert (one < other) == (one.token() < other.token())
    assert (one == other) == (one.token() == other.token())


@given(positions)
def test_a_token_is_read_as_the_position_it_was_made_of(position: Position) -> None:
    assert Position.from_token(position.token()) == position


@given(st.text())
def test_text_is_a_token_of_ours_or_refused(text: str) -> None:
    try:
        assert Position.from_token(text).token() == text
    except Problem as problem:
        if problem.status != 400:
            raise


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1-1",
        "00000001",
        "00000001-000000000000000g",
        "00000001-0000000000000001 ",
        "00000001-0000000000000001\n",
        "0000_001-0000000000000001",
        "-0000001-0000000000000001",
        "+0000001-0000000000000001",
        "0x000001-0000000000000001",
        "00000001-000000000000000A",
        "0000000\uff11-0000000000000001",
        "000000001-0000000000000001",
        "00000001-00000000000000001",
    ],
)
def test_what_only_looks_like_a_token_is_refused(text: str) -> None:
    with pytest.raises(Problem) as caught:
        Position.from_token(text)
    assert (caught.value.code, caught.value.status) == ("invalid_parameter", 400)

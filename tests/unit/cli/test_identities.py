"""External ids that are made up: the same in every run, different for every row."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import identities
from cli.errors import CommandError
from cli.identities import Identities

CONTENTS = st.dictionaries(st.sampled_from("abc"), st.text("xy", max_size=1), max_size=2)


def ids(rows: list[dict[str, str]]) -> list[str]:
    with Identities() as given_out:
        return [given_out.of(row) for row in rows]


@given(st.lists(CONTENTS))
def test_ids_are_distinct_and_the_same_in_every_run(rows: list[dict[str, str]]) -> None:
    assert len(set(ids(rows))) == len(rows)
    assert ids(rows) == ids(rows)


@given(st.lists(CONTENTS), st.randoms(use_true_random=False))
def test_moving_rows_gives_the_same_ids(rows: list[dict[str, str]], chance: object) -> None:
    moved = list(rows)
    chance.shuffle(moved)  # type: ignore[attr-defined]
    assert sorted(ids(moved)) == sorted(ids(rows))


def test_the_order_of_columns_does_not_matter_and_their_names_do() -> None:
    assert ids([{"a": "1", "b": "2"}]) == ids([{"b": "2", "a": "1"}])
    assert ids([{"a": "1"}]) != ids([{"b": "1"}])
    assert ids([{"a": "b"}]) != ids([{"ab": ""}])


def test_ids_do_not_change_between_releases() -> None:
    row = {"title": "x"}
    assert ids([row, row]) == [
        "row:8e24e190d5cbd89b7588f200dc0161ed:1",
        "row:8e24e190d5cbd89b7588f200dc0161ed:2",
    ]


def test_a_temporary_file_that_cannot_grow_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "CACHE_KIBIBYTES", 64)
    with Identities() as given_out:
        given_out._connection.execute("pragma max_page_count = 10")
        with pytest.raises(CommandError, match="SQLITE_TMPDIR"):
            collections.deque((given_out.of({"a": str(number)}) for number in range(100_000)), maxlen=0)

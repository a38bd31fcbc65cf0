"""What a search depends on, apart from PostgreSQL; with it: tests/integration/search/test_search_made_old.py."""

import uuid

import pytest

from libs.common.cache.search_tags import (
    CHANGED_WORDS,
    Change,
    indexed,
    of_search,
    parts_of_search,
    search_tag,
    searches,
    words_header,
)

ORGANIZATION = uuid.uuid4()
TICKET = uuid.uuid4()


def bumped(*changes: Change, untold: bool = False) -> set[str]:
    made_old = indexed(ORGANIZATION, changes, untold=untold)
    return {*made_old.tags, *made_old.parts}


def parts(*words: str, matches_without: bool = False) -> set[str]:
    return set(parts_of_search(ORGANIZATION, words_header(words, matches_without=matches_without), [TICKET]))


@pytest.mark.parametrize("word", ["printer", "it's", "a,b", "*", "", "\n", "\u20ac", "x" * 2000])
def test_both_sides_mean_the_same_word(word: str) -> None:
    assert parts(word) & bumped(Change(ORGANIZATION, uuid.uuid4(), [word]))
    assert not parts(word) & bumped(Change(ORGANIZATION, uuid.uuid4(), ["fire"]))
    assert not parts(word) & {
        *indexed(uuid.uuid4(), [Change(uuid.uuid4(), uuid.uuid4(), [word])], untold=False).parts
    }, "the same word of another organization"
    assert len(words_header([word], matches_without=False)) == 16
    assert all("\n" not in tag for tag in parts(word))


def test_a_ticket_that_is_shown_counts_whatever_its_words() -> None:
    assert parts("printer") & bumped(Change(ORGANIZATION, TICKET, []))
    assert parts() & bumped(Change(ORGANIZATION, TICKET, []))
    assert not parts_of_search(ORGANIZATION, words_header([], matches_without=False), [])


def test_what_every_change_may_concern_depends_on_every_change() -> None:
    every_change = {search_tag(ORGANIZATION)}
    assert parts("printer", matches_without=True) == every_change
    assert parts(*(f"word{number}" for number in range(51))) == every_change
    assert len(parts(*(f"word{number}" for number in range(50)))) == 51
    assert set(parts_of_search(ORGANIZATION, None, [TICKET])) == every_change, "a service that does not tell"
    for changes in ([], [Change(ORGANIZATION, uuid.uuid4(), [])]):
        for untold in (True, False):
            assert every_change <= bumped(*changes, untold=untold)


def test_what_cannot_be_told_makes_every_search_old() -> None:
    assert set(of_search(ORGANIZATION).tags) <= set(searches(ORGANIZATION))
    assert set(searches(ORGANIZATION)) <= bumped(untold=True)
    many = [Change(ORGANIZATION, uuid.uuid4(), [f"word{n}"]) for n in range(CHANGED_WORDS)]
    for count, is_all in ((CHANGED_WORDS // 2, False), (CHANGED_WORDS // 2 + 1, True)):
        assert (bumped(*many[:count]) == {search_tag(ORGANIZATION), *searches(ORGANIZATION)}) == is_all


def test_whatever_is_bumped_is_bumped_with_what_is_watched() -> None:
    for changes in ([], [Change(ORGANIZATION, TICKET, ["printer"])]):
        for untold in (True, False):
            tags = indexed(ORGANIZATION, changes, untold=untold).tags
            assert set(of_search(ORGANIZATION).watched) <= set(tags)

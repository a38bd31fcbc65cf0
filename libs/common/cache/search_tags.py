"""The tags of searches: what a change of the index makes old, and what an answer depends on.

Both sides stand here because they must agree. An answer becomes another only when one of the tickets that it shows is
written, or when in some document a word of its query comes, goes, moves or weighs something else: by nothing else does
a document begin or cease to match, or change its rank. Words are what PostgreSQL makes of a text, so only the search
service knows them; it tells the gateway in `WORDS_HEADER`. A query that also matches documents with none of its words,
such as one of negations, depends on every change.

All of them are parts (see `libs.common.cache.loads.Question`): `search_tag` is watched, and bumped with every change.
"""

import hashlib
import uuid
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from libs.common.cache.ticket_tags import Dependence

# From the search service to the gateway, never to a client: `*`, or the hashes of words with commas between.
WORDS_HEADER: Final = "Relaydesk-Search-Words"
_EVERY_CHANGE = "*"
_WORDS = 50  # of a query; with more it depends on every change
CHANGED_WORDS: Final = 1000  # of one bump; with more it makes every search of the organization old


class Change(NamedTuple):
    """A document that was stored. `words`: those whose entries in it have changed; of a new one all, and its number."""

    organization_id: uuid.UUID
    ticket_id: uuid.UUID
    words: Collection[str]


class Indexed(NamedTuple):
    """What to bump in one call when documents of an organization were stored: `tags`, and `parts` if they exist."""

    tags: list[str]
    parts: list[str]


def number_word(number: int) -> str:
    """What stands for a ticket's number among the words."""
    return f"#{number}"


def search_tag(organization_id: object) -> str:
    """Every change of an organization's documents."""
    return f"org:{organization_id}:search"


def searches(organization_id: object) -> list[str]:
    """What to bump or clear so that no search of an organization is left."""
    return [f"{search_tag(organization_id)}:all"]


def of_search(organization_id: object) -> Dependence:
    """What every search depends on; `parts_of_search` are its parts."""
    return Dependence(searches(organization_id), [search_tag(organization_id)])


def words_header(words: Collection[str], *, matches_without: bool) -> str:
    """The value of `WORDS_HEADER` for a query; `matches_without`: whether documents with none of its words match."""
    if matches_without or len(words) > _WORDS:
        return _EVERY_CHANGE
    return ",".join(map(_hashed, words))


def parts_of_search(organization_id: object, header: str | None, shown: Iterable[object]) -> tuple[str, ...]:
    """The parts of an answer that shows these tickets. `header`: None from a service that does not send it."""
    if header is None or header == _EVERY_CHANGE:
        return (search_tag(organization_id),)
    words = (_word_tag(organization_id, word) for word in header.split(",") if word)
    return (*words, *map(_found_tag, shown))


def indexed(organization_id: object, changes: Iterable[Change], *, untold: bool) -> Indexed:
    """What `changes` of an organization make old; `untold`: there were others, and nobody knows any more which."""
    always = [search_tag(organization_id)]
    everything = Indexed([*always, *searches(organization_id)], [])
    if untold:
        return everything
    words: set[str] = set()
    shown: dict[str, None] = {}
    for change in changes:
        words.update(change.words)
        shown[_found_tag(change.ticket_id)] = None
        if len(words) + len(shown) > CHANGED_WORDS:
            return everything
    return Indexed(always, [*shown, *(_word_tag(organization_id, word) for word in sorted(map(_hashed, words)))])


def _found_tag(ticket_id: object) -> str:
    """A ticket as searches show it; its own tag is bumped before the index has what was written."""
    return f"found:{ticket_id}"


def _word_tag(organization_id: object, hashed: str) -> str:
    return f"org:{organization_id}:word:{hashed}"


def _hashed(word: str) -> str:
    """Words may hold anything; 64 bits are enough, for two of one hash only make each other old."""
    return hashlib.blake2b(word.encode(), digest_size=8).hexdigest()

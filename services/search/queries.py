"""Searches: what may be asked, and what is answered."""

import re
import time
import uuid

import asyncpg

from libs.common.cache.search_tags import number_word, words_header
from libs.common.models import FoundTicket, Priority, SearchResult, SearchResults, Status
from libs.common.problems import Problem
from services.search import store
from services.search.texts import highlight, searchable

QUERY_LENGTH = 500
LIMIT = 50
DEFAULT_LIMIT = 20
_ANSWER_SECONDS = 1.0
# A bare number, as people write a ticket's; PostgreSQL's bigint has room for 18 digits whatever they are.
_NUMBER = re.compile(r"#?([0-9]{1,18})", re.ASCII)


class Queries:
    """Runs searches; `pool` acts as the role search_app."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def check(self) -> None:
        """Raise what the driver raises when the database does not answer within a second."""
        async with self._pool.acquire(timeout=_ANSWER_SECONDS) as connection:
            await connection.execute("SELECT 1", timeout=_ANSWER_SECONDS)

    async def search(self, organization_id: uuid.UUID, text: str, limit: int) -> tuple[SearchResults, str]:
        """The best `limit` (1 to 50) of the newest 200 matches of `text`, in the syntax of web search engines.

        With them the value of `WORDS_HEADER`.

        Raises:
            Problem: `invalid_parameter` for a text that is blank, longer than 500 characters or holds U+0000.
        """
        started = time.perf_counter()
        checked = _checked(text)
        number = _NUMBER.fullmatch(checked)
        found = await store.search(
            self._pool,
            organization_id,
            text=searchable(checked),
            number=int(number[1]) if number else None,
            limit=limit,
        )
        words = [*found.words, number_word(int(number[1]))] if number else found.words
        results = [
            SearchResult(_shown(match), highlight(match.title_headline, match.text_headline), match.score)
            for match in found.matches
        ]
        answer = SearchResults(results, round((time.perf_counter() - started) * 1000, 3))
        return answer, words_header(words, matches_without=found.matches_without)


def _checked(text: str) -> str:
    stripped = text.strip()
    if not stripped:
        raise Problem("invalid_parameter", "q must hold what to search for.")
    if len(text) > QUERY_LENGTH:
        raise Problem("invalid_parameter", f"q has {len(text)} characters, {QUERY_LENGTH} are allowed.")
    if "\x00" in text:
        raise Problem("invalid_parameter", "q must not contain the character U+0000.")
    return stripped


def _shown(match: store.Match) -> FoundTicket:
    return FoundTicket(
        id=match.ticket_id,
        number=match.number,
        title=match.title,
        status=Status(match.status),
        priority=Priority(match.priority),
        created_at=match.created_at,
    )

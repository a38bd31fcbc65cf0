"""HTTP of the search service: parse, call, render."""

from collections.abc import Callable

from aiohttp import web

from libs.common.cache.search_tags import WORDS_HEADER
from libs.common.identity import HEADER, Verifier
from libs.common.problems import Problem
from libs.common.service import json_response
from services.search.queries import DEFAULT_LIMIT, LIMIT, Queries


class SearchRoutes:
    """The routes; the gateway speaks for whoever asks."""

    def __init__(self, queries: Callable[[], Queries], verifier: Verifier) -> None:
        self._queries = queries
        self._verifier = verifier

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/api/search", self.search, allow_head=False)

    async def search(self, request: web.Request) -> web.Response:
        principal = self._verifier.principal(request.headers.get(HEADER))
        answer, words = await self._queries().search(
            principal.organization_id, request.query.get("q", ""), _limit(request.query.get("limit"))
        )
        return json_response(answer, headers={WORDS_HEADER: words})


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= LIMIT):
        raise Problem("invalid_parameter", f"limit must be a whole number from 1 to {LIMIT}.")
    return int(text)

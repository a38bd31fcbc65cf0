"""What the gateway tells the cache of a search."""

import types
import uuid
from typing import Any, cast

import msgspec
from aiohttp import web

from libs.common.cache.search_tags import WORDS_HEADER, Change, indexed, searches, words_header
from services.gateway.answers.reads import CachedReads
from services.gateway.routes.tickets import TicketRoutes
from services.gateway.upstreams.upstream import Answer

ORGANIZATION = uuid.uuid4()
TICKET = uuid.uuid4()


class Stub:
    """Stands in for whoever knows the caller and for the cache; remembers what the latter is asked."""

    asked: dict[str, Any]

    async def authenticate(self, _request: web.Request) -> Any:
        return types.SimpleNamespace(principal=types.SimpleNamespace(organization_id=ORGANIZATION))

    async def answer(self, *_request: object, **asked: Any) -> web.Response:
        self.asked = asked
        return web.Response()


def answer(headers: dict[str, str]) -> Answer:
    return Answer(200, headers, msgspec.json.encode({"results": [{"ticket": {"id": TICKET, "number": 1}}]}), 1.0)


async def test_a_search_depends_on_what_the_index_bumps() -> None:
    stub = Stub()
    routes = TicketRoutes(cast("Any", stub), cast("CachedReads", stub), cast("Any", None), cast("Any", None))
    await routes.search(cast("web.Request", None))
    tags, watched, parts_of = (stub.asked[name] for name in ("tags", "watched", "parts_of"))
    assert set(tags) == set(searches(ORGANIZATION))
    told = indexed(ORGANIZATION, [Change(ORGANIZATION, TICKET, ["printer"])], untold=False)
    assert watched
    assert set(watched) <= set(told.tags), "whoever bumps a part bumps it in the same call"
    assert not set(watched) & set(tags)
    words = words_header(["printer"], matches_without=False)
    assert set(parts_of(answer({WORDS_HEADER: words}))) == set(told.parts)
    assert set(parts_of(answer({}))) <= set(told.tags), "a service that does not tell"

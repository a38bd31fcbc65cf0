"""The search service, wired together."""

import contextlib
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from redis.asyncio import Redis

from libs.common import background
from libs.common.cache.tags import Tags
from libs.common.identity import Signer, Verifier
from libs.common.kafka import EventConsumer
from libs.common.migrations import require_current
from libs.common.postgres import create_pool, translate_error
from libs.common.service import add_service_defaults
from services.search.consumers import INDEX_GROUP, INVALIDATE_GROUP, IndexConsumer, InvalidateConsumer
from services.search.documents import Documents
from services.search.health import HealthRoutes
from services.search.paths import MIGRATIONS
from services.search.queries import Queries
from services.search.routes import SearchRoutes
from services.search.settings import Settings
from services.search.tickets_client import TicketsClient

APP_ROLE = "search_app"
INDEXER_ROLE = "search_indexer"
_REDIS_SECONDS = 2.0
_QUERIES: web.AppKey[Queries] = web.AppKey("queries", Queries)


def build_app(settings: Settings) -> web.Application:
    app = web.Application()
    add_service_defaults(app, translate=translate_error, internal=True)
    verifier = Verifier(settings.trusted_keys, audience="search")
    signer = Signer(settings.signing_key)

    def queries() -> Queries:
        return app[_QUERIES]  # it is there before the first request: the port opens after `resources` has begun

    consumers: dict[str, EventConsumer] = {}
    SearchRoutes(queries, verifier).add_to(app.router)
    HealthRoutes(queries, consumers, verifier).add_to(app.router)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            readers = await background.patiently(
                "search database",
                lambda: create_pool(settings.database_url, role=APP_ROLE, service="search", minimum=2, maximum=16),
            )
            stack.push_async_callback(readers.close)
            async with readers.acquire() as connection:
                await require_current(connection, MIGRATIONS)
            writers = await create_pool(
                settings.database_url, role=INDEXER_ROLE, service="search-index", minimum=1, maximum=2
            )
            stack.push_async_callback(writers.close)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            redis = Redis.from_url(
                settings.cache_redis_url, socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS
            )
            stack.push_async_callback(redis.aclose)
            tags = Tags(redis)
            documents = Documents(writers, TicketsClient(session, settings.tickets_url, signer))
            app[_QUERIES] = Queries(readers)
            for group, consumer in (
                (INDEX_GROUP, IndexConsumer(documents, tags)),
                (INVALIDATE_GROUP, InvalidateConsumer(tags)),
            ):
                events = EventConsumer(settings.kafka_bootstrap, group=group, apply=consumer.apply)
                consumers[group] = events
                await stack.enter_async_context(background.running(group, events.run))
            yield

    app.cleanup_ctx.append(resources)
    return app

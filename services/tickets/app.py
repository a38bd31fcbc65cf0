"""The tickets service, wired together."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from libs.common import background
from libs.common.identity import Verifier
from libs.common.models import BODY_BYTES
from libs.common.postgres import translate_error
from libs.common.service import add_service_defaults
from services.tickets import (
    partitions,
    store_comments,
    store_idempotency,
    store_lists,
    store_people,
    store_tickets,
)
from services.tickets.database import Database, HotStatements
from services.tickets.relay import Relay
from services.tickets.routes_health import HealthRoutes
from services.tickets.routes_history import HistoryRoutes
from services.tickets.routes_lists import ListRoutes
from services.tickets.routes_people import PeopleRoutes
from services.tickets.routes_reports import ReportRoutes
from services.tickets.routes_tickets import TicketRoutes
from services.tickets.settings import Settings

_DATABASE: web.AppKey[Database] = web.AppKey("database", Database)

HOT = HotStatements(
    reads=(
        store_tickets.SELECT_TICKET,
        store_comments.LIST_COMMENTS,
        store_lists.LISTS[store_lists.Filter.NONE, store_lists.Sort.NEWEST],
        store_lists.LISTS[store_lists.Filter.STATUS, store_lists.Sort.NEWEST],
        store_lists.LISTS[store_lists.Filter.ASSIGNEE, store_lists.Sort.NEWEST],
    ),
    writes=(
        store_tickets.NEXT_NUMBER,
        store_tickets.INSERT_TICKET,
        store_tickets.LOCK_TICKET,
        store_tickets.NEW_ID_AND_TIME,
        store_tickets.UPDATE_TICKET,
        store_comments.INSERT_COMMENT,
        store_idempotency.CLAIM_KEY,
        store_idempotency.INSERT_RECORD,
    ),
    identity=(store_people.SELECT_CREDENTIAL, store_people.SELECT_KEY_OWNER),
)


def build_app(settings: Settings) -> web.Application:
    app = web.Application(client_max_size=BODY_BYTES)
    add_service_defaults(app, translate=translate_error, internal=True)
    verifier = Verifier(settings.trusted_keys, audience="tickets")
    relay = Relay(settings)

    def database() -> Database:
        return app[_DATABASE]  # it is there before the first request: the port opens after `resources` has begun

    HealthRoutes(database, verifier, settings.kafka_bootstrap).add_to(app.router)
    TicketRoutes(database, verifier, wrote=relay.wake).add_to(app.router)
    ListRoutes(database, verifier).add_to(app.router)
    HistoryRoutes(database, verifier).add_to(app.router)
    PeopleRoutes(database, verifier).add_to(app.router)
    ReportRoutes(database, verifier).add_to(app.router)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            app[_DATABASE] = await stack.enter_async_context(Database.open(settings, HOT))
            await stack.enter_async_context(partitions.maintained(settings))
            if settings.relay_embedded:
                await stack.enter_async_context(background.running("relay", relay.run))
            yield

    app.cleanup_ctx.append(resources)
    return app

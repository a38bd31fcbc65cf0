"""The tickets service, wired together."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from libs.common import background
from libs.common.identity import Verifier
from libs.common.models import BODY_BYTES
from libs.common.postgres import translate_error
from libs.common.service import add_service_defaults
from services.tickets.database import Database
from services.tickets.relay import Relay
from services.tickets.routes_people import PeopleRoutes
from services.tickets.routes_tickets import TicketRoutes
from services.tickets.settings import Settings

_DATABASE: web.AppKey[Database] = web.AppKey("database", Database)


def build_app(settings: Settings) -> web.Application:
    app = web.Application(client_max_size=BODY_BYTES)
    add_service_defaults(app, translate=translate_error)
    verifier = Verifier(settings.trusted_keys, audience="tickets")
    relay = Relay(settings)

    def database() -> Database:
        return app[_DATABASE]  # it is there before the first request: the port opens after `resources` has begun

    TicketRoutes(database, verifier, wrote=relay.wake).add_to(app.router)
    PeopleRoutes(database, verifier).add_to(app.router)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            app[_DATABASE] = await stack.enter_async_context(Database.open(settings))
            if settings.relay_embedded:
                await stack.enter_async_context(background.running("relay", relay.run))
            yield

    app.cleanup_ctx.append(resources)
    return app

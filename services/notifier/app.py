"""Wires the notifier together."""

import functools
import uuid
from collections.abc import AsyncIterator, Sequence

import msgspec
from aiohttp import web

from libs.common import background
from libs.common.identity import Verifier
from libs.common.kafka import EventConsumer
from libs.common.service import add_service_defaults
from services.notifier.consumers import GROUP, Announcer
from services.notifier.delivery import Delivery
from services.notifier.engine import socket_server
from services.notifier.revocations import Revocations
from services.notifier.settings import Settings
from services.notifier.sockets import EVENT, PATH, Sockets, room_of
from services.notifier.streams import Streams, connect

NAME = "notifier"


def build_app(settings: Settings) -> web.Application:
    redis = connect(settings.redis_url)
    streams = Streams(redis)
    server = socket_server(settings.allowed_origins)

    async def emit(organization_id: uuid.UUID, items: Sequence[msgspec.Raw]) -> None:
        await server.emit(EVENT, items, room=room_of(organization_id))

    delivery = Delivery(streams, emit)
    revocations = Revocations(redis)
    sockets = Sockets(server, Verifier(settings.trusted_keys, audience=NAME), delivery, revocations)
    consumer = EventConsumer(settings.kafka_bootstrap_servers, group=GROUP, apply=Announcer(streams).apply)

    async def run_background(_app: web.Application) -> AsyncIterator[None]:
        follow_revocations = functools.partial(revocations.run, sockets.disconnect_credential)
        async with (
            background.running("revocations", follow_revocations),
            background.running("delivery", delivery.run),
            background.running("consumer", consumer.run),
        ):
            yield
        await redis.aclose()

    app = web.Application()
    add_service_defaults(app, streaming=frozenset({PATH}))
    sockets.add_routes(app)
    app.cleanup_ctx.append(run_background)
    app.on_shutdown.append(sockets.close_all)
    return app

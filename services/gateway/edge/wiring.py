"""What a public server owes browsers, proxies, caches and slow clients; the other services have the gateway for it."""

from collections.abc import Iterable

from aiohttp import web

from libs.common.timeouts import TIMEOUTS, Timeouts
from services.gateway.edge.cors import Cors
from services.gateway.edge.proxies import TrustedProxies, note_client
from services.gateway.edge.security import add_hsts, add_security_headers
from services.gateway.settings import Settings


def stand_at_the_edge(app: web.Application, settings: Settings, proxies: TrustedProxies) -> None:
    """Give `app` timeouts, the client's address, and headers on every answer."""
    app[TIMEOUTS] = Timeouts(
        head=settings.head_seconds,
        body=settings.body_seconds,
        idle=settings.idle_seconds,
        write=settings.write_seconds,
    )
    app.middlewares.append(note_client(proxies))
    app.on_response_prepare.append(add_security_headers)
    if settings.trusted_proxies:
        app.on_response_prepare.append(add_hsts)


def allow_origins(app: web.Application, settings: Settings, paths: Iterable[str]) -> None:
    """Let pages of the allowed origins read the answers of `paths`; without any, nothing is added."""
    if settings.allowed_origins:
        cors = Cors(settings.allowed_origins)
        app.on_response_prepare.append(cors.mark)
        for path in sorted(set(paths)):
            app.router.add_route("OPTIONS", path, cors.preflight)

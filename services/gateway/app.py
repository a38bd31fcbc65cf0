"""The gateway, wired together."""

from collections.abc import AsyncIterator

from aiohttp import web
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from libs.common import background
from libs.common.cache import readthrough
from libs.common.cache.readthrough import ReadThroughCache
from libs.common.connections import SHORTCUT
from libs.common.identity import Signer
from libs.common.models import BODY_BYTES
from libs.common.service import Handler, add_service_defaults
from services.gateway.answers.hits import Hits
from services.gateway.answers.reads import CachedReads
from services.gateway.callers.sessions import SessionStore
from services.gateway.description.pages import Description
from services.gateway.edge.proxies import TrustedProxies
from services.gateway.edge.unicode import refuse_malformed_text
from services.gateway.edge.wiring import allow_origins, stand_at_the_edge
from services.gateway.endpoints import ENDPOINTS
from services.gateway.limits.limited import LimitedAuthenticator, LimitedHandlers, tell_limits
from services.gateway.limits.limits import Limits, Rates
from services.gateway.routes.cache import CacheRoutes
from services.gateway.routes.health import HealthRoute
from services.gateway.routes.reports import ReportRoutes
from services.gateway.routes.session import SessionRoutes
from services.gateway.routes.tickets import TicketRoutes
from services.gateway.settings import Settings
from services.gateway.upstreams.upstream import Upstream, client_session

_REDIS_SECONDS = 1.0
_NO_ID = {"/api/tickets/{ticket_id}": "/api/tickets/{ticket_id:(?!bulk$)[^{}/]+}"}  # where `bulk` is another path


def build_app(settings: Settings) -> web.Application:
    """Build the gateway. Must be called while an event loop runs."""
    app = web.Application(client_max_size=BODY_BYTES)
    add_service_defaults(app)
    proxies = TrustedProxies(settings.trusted_proxies, header=settings.forwarded_header)
    stand_at_the_edge(app, settings, proxies)
    app.middlewares.append(refuse_malformed_text)
    app.middlewares.append(tell_limits)

    http = client_session()
    redis = _redis(settings.redis_url)
    cache_redis = readthrough.connect(settings.cache_redis_url)
    signer = Signer(settings.signing_key)
    tickets = Upstream("tickets", settings.tickets_urls, http, signer, seconds=settings.upstream_seconds)
    search = Upstream("search", settings.search_urls, http, signer, seconds=settings.upstream_seconds)
    notifier = Upstream("notifier", settings.notifier_urls, http, signer, seconds=settings.upstream_seconds)

    cache = ReadThroughCache(cache_redis, l1_items=settings.cache_items, l1_seconds=settings.cache_seconds)
    sessions = SessionStore(redis, hours=settings.session_hours)
    limits = Limits(redis, _rates(settings))
    limited = LimitedHandlers(limits)
    authenticator = LimitedAuthenticator(sessions, tickets, redis, limits)
    hits = Hits(cache, authenticator, limits, proxies, has_origins=bool(settings.allowed_origins))
    app[SHORTCUT] = hits.answer
    reads = CachedReads(cache, hits, l2_seconds=settings.cache_l2_seconds, stale_seconds=settings.cache_stale_seconds)

    ticket_routes = TicketRoutes(authenticator, reads, tickets, search)
    report_routes = ReportRoutes(authenticator, tickets)
    cache_routes = CacheRoutes(authenticator, cache, tickets)
    session_routes = SessionRoutes(
        authenticator,
        sessions,
        tickets,
        signer,
        notifier_public_url=settings.notifier_public_url,
        cookie_secure=settings.cookie_secure,
    )
    health = HealthRoute(redis=redis, cache_redis=cache_redis, tickets=tickets, search=search, notifier=notifier)
    description = Description()

    handlers: dict[str, Handler] = {
        "sign_in": _carried_to_its_end(limited.sign_in(session_routes.sign_in)),
        "who_am_i": session_routes.who_am_i,
        "sign_out": _carried_to_its_end(session_routes.sign_out),
        "create_key": session_routes.keys,
        "list_keys": session_routes.keys,
        "revoke_key": _carried_to_its_end(session_routes.revoke_key),
        "realtime_token": session_routes.realtime_token,
        "create_ticket": ticket_routes.create,
        "create_tickets": limited.bulk(ticket_routes.create),
        "update_ticket": ticket_routes.update,
        "update_tickets": limited.bulk(ticket_routes.update_many),
        "add_comment": ticket_routes.comment,
        "list_tickets": ticket_routes.list,
        "get_ticket": ticket_routes.get,
        "list_comments": ticket_routes.list_comments,
        "list_history": ticket_routes.list_history,
        "list_audit": report_routes.report,
        "search": ticket_routes.search,
        "report_tickets": report_routes.report,
        "report_times": report_routes.report,
        "report_backlog": report_routes.report,
        "cache_figures": cache_routes.figures,
        "clear_cache": _carried_to_its_end(cache_routes.clear),
        "health": health.get,
        "openapi": description.document.get,
        "docs": description.page.get,
    }
    for endpoint in ENDPOINTS:
        _add_route(app, endpoint.method, _NO_ID.get(endpoint.path, endpoint.path), handlers[endpoint.operation])
    _add_route(app, "GET", description.stylesheet, description.styles.get)
    allow_origins(app, settings, [endpoint.path for endpoint in ENDPOINTS])

    async def resources(_app: web.Application) -> AsyncIterator[None]:
        async with (
            background.running("cache_invalidations", cache.listen),
            background.running("rate_limits", limits.run),
            tickets.watched(),
            search.watched(),
            notifier.watched(),
        ):
            yield
        await http.close()
        await redis.aclose()
        await cache_redis.aclose()

    app.cleanup_ctx.append(resources)
    return app


def _add_route(app: web.Application, method: str, path: str, handler: Handler) -> None:
    """What answers GET answers HEAD in the same way (RFC 9110, 9.1); aiohttp leaves the body out."""
    app.router.add_route(method, path, handler)
    if method == "GET":
        app.router.add_route("HEAD", path, handler)


def _carried_to_its_end(handler: Handler) -> Handler:
    """Also when the client has gone meanwhile: what has ended in one place must be told to the others."""

    async def carried(request: web.Request) -> web.StreamResponse:
        return await background.finish(handler(request))

    return carried


def _rates(settings: Settings) -> Rates:
    return Rates(
        credential=settings.limit_credential,
        organization=settings.limit_organization,
        address=settings.limit_address,
        sign_in=settings.limit_sign_in,
        account=settings.limit_account,
    )


def _redis(url: str) -> Redis:
    # One more try, at once: whoever asks is told to come again rather than kept waiting.
    return Redis.from_url(
        url,
        socket_timeout=_REDIS_SECONDS,
        socket_connect_timeout=_REDIS_SECONDS,
        retry=Retry(NoBackoff(), 1),
    )

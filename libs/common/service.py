"""The frame every service stands in: probes, metrics, traces, one log line a request, errors.

`add_service_defaults(app, …)` gives an application all of it; `serving.serve(…)` runs the application.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import web
from opentelemetry import trace
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from libs.common import background, deadlines, tracing
from libs.common.models import BODY_BYTES
from libs.common.problems import CONTENT_TYPE, Problem
from libs.common.request_records import UNMATCHED, record

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Translate = Callable[[Exception], Problem | None]

LOG_FIELDS: web.RequestKey[dict[str, object]] = web.RequestKey("log_fields", dict)
_JSON = msgspec.json.Encoder()
log = structlog.get_logger()


class Readiness:
    """Whether the process has started and is not draining; dependencies play no part in it.

    A Redis outage must not take every pod out of the load balancer.
    """

    def __init__(self) -> None:
        self.started = False
        self.draining = False

    @property
    def ready(self) -> bool:
        return self.started and not self.draining


READINESS: web.AppKey[Readiness] = web.AppKey("readiness", Readiness)
STREAMS: web.AppKey[bool] = web.AppKey("streams", bool)


def json_response(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An `application/json` answer of anything msgspec can encode."""
    return web.Response(body=_JSON.encode(body), status=status, headers=headers, content_type="application/json")


def problem_response(problem: Problem) -> web.Response:
    context = trace.get_current_span().get_span_context()
    details = problem.details(f"{context.trace_id:032x}" if context.is_valid else None)
    return web.Response(
        body=_JSON.encode(details), status=problem.status, headers=problem.headers, content_type=CONTENT_TYPE
    )


async def read_json_body(request: web.Request) -> bytes:
    """The body of a request that must be JSON.

    Raises:
        Problem: `unsupported_media_type` (415) or `body_too_large` (413).
    """
    if request.content_type != "application/json":
        raise Problem("unsupported_media_type", f"The body is {request.content_type!r}.")
    return await read_body(request)


async def read_body(request: web.Request) -> bytes:
    """The body, at most 1 MiB.

    Raises:
        Problem: `body_too_large` (413), or `malformed_request` (400) for one that is not encoded as it says.
    """
    if (request.content_length or 0) > BODY_BYTES:
        raise Problem("body_too_large", f"The body has {request.content_length} bytes, {BODY_BYTES} are allowed.")
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise Problem("body_too_large", f"At most {BODY_BYTES} bytes are allowed.") from error
    except web.RequestPayloadError as error:
        raise Problem("malformed_request", "The body cannot be decoded.") from error


def add_service_defaults(
    app: web.Application,
    *,
    translate: Translate | None = None,
    streaming: frozenset[str] = frozenset(),
    internal: bool = False,
) -> None:
    """Give `app` the probes, `/metrics` and the request middleware.

    `translate` maps a driver's exception to the problem a client is told; None means an internal error. `streaming`
    routes (websockets, long polls) last as long as the client likes: they are left out of spans, durations and log.

    The handler of a client that has gone is cancelled, wherever it waits; what must not be left half done there
    is awaited with `background.finish`. Not in an application with streaming routes: a stream notices its client's end
    by itself and ends in good order. In an `internal` application, which only services call, the handler is cancelled
    as well when the caller's deadline is over.
    """
    app[READINESS] = Readiness()
    app[STREAMS] = bool(streaming)
    if internal:
        app.middlewares.insert(0, deadlines.keep)
    app.middlewares.insert(0, _request_middleware(translate or (lambda _error: None), streaming))
    add_probes(app)

    async def watch_event_loop(_app: web.Application):  # type: ignore[no-untyped-def]  # noqa: ANN202
        async with background.running("event_loop_lag", background.measure_event_loop_lag):
            yield

    app.cleanup_ctx.append(watch_event_loop)


def add_probes(app: web.Application) -> None:
    """Answer `/livez`, `/readyz` and `/metrics`."""
    app.router.add_get("/livez", _livez)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/metrics", _metrics)


async def _livez(_request: web.Request) -> web.Response:
    return json_response({"status": "ok"})


async def _readyz(request: web.Request) -> web.Response:
    readiness = request.app[READINESS]
    if readiness.ready:
        return json_response({"status": "ok"})
    return json_response({"status": "draining" if readiness.draining else "starting"}, status=503)


async def _metrics(_request: web.Request) -> web.Response:
    return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})


def route_of(request: web.Request) -> str:
    """The route's path, its parameters in braces."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else UNMATCHED


def _request_middleware(translate: Translate, streaming: frozenset[str]):  # type: ignore[no-untyped-def]  # noqa: ANN202
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        if route in streaming:
            return await _answer(request, handler, translate)
        started = time.perf_counter()
        fields: dict[str, object] = {}
        request[LOG_FIELDS] = fields
        with tracing.ServerSpan(request.method, route, request.headers) as span:
            try:
                response = await _answer(request, handler, translate)
            except asyncio.CancelledError:
                duration_ms = round((time.perf_counter() - started) * 1000, 2)
                log.info("request_abandoned", method=request.method, route=route, duration_ms=duration_ms, **fields)
                raise
            span.answered(response.status)
            fields["trace_id"] = span.trace_id
            record(request.method, route, response.status, started, fields)
        return response

    return middleware


async def _answer(  # noqa: PLR0911 (one return a kind of error: this is the table)
    request: web.Request, handler: Handler, translate: Translate
) -> web.StreamResponse:
    """Run the handler; every exception becomes an RFC 9457 answer here and nowhere else."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem_response(problem)
    except web.HTTPNotFound:
        return problem_response(Problem("route_not_found", f"There is no route {request.path}."))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return problem_response(Problem("method_not_allowed", f"Allowed here: {allowed}.", headers={"Allow": allowed}))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = "body_too_large" if error.status == 413 else "malformed_request"
        return problem_response(Problem(code, error.reason))
    except asyncio.CancelledError:
        raise
    except Exception as error:
        told = translate(error)
        if told is None:
            log.exception("request_failed", method=request.method, path=request.path)
            return problem_response(Problem("internal_error"))
        log.warning("dependency_failed", path=request.path, error=repr(error))
        return problem_response(told)

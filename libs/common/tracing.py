"""OpenTelemetry traces: W3C trace context end to end, exported over OTLP/HTTP when an endpoint is set.

asyncio itself is not instrumented (the contributed instrumentor leaks with aiokafka); spans are opened by hand where
a request or an event enters a service.
"""

import random
from collections.abc import Mapping, MutableMapping
from contextvars import Token
from types import TracebackType
from typing import Self

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACER = trace.get_tracer("relaydesk")
_PROPAGATOR = TraceContextTextMapPropagator()
_exporting = False


def configure(service: str, *, endpoint: str | None, sample_ratio: float) -> TracerProvider:
    """Make the process export spans to `endpoint` (an OTLP/HTTP collector), sampled at the trace's head.

    Without an endpoint nothing is recorded, yet trace ids still travel.
    """
    global _exporting  # noqa: PLW0603 (as the provider itself: one a process)
    _exporting = endpoint is not None
    provider = TracerProvider(
        resource=Resource.create({"service.name": service, "service.namespace": "relaydesk"}),
        sampler=ParentBasedTraceIdRatio(sample_ratio if endpoint else 0.0),
    )
    if endpoint:
        provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces"), schedule_delay_millis=500)
        )
    trace.set_tracer_provider(provider)
    return provider


def extract(headers: Mapping[str, str]) -> Context:
    """The context a `traceparent` header describes."""
    return _PROPAGATOR.extract(headers)


def inject(headers: MutableMapping[str, str]) -> None:
    """Add the current span's `traceparent` (and `tracestate`) to `headers`."""
    _PROPAGATOR.inject(headers)


def current_traceparent() -> str | None:
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier.get("traceparent")


def answered(method: str, route: str, status: int, headers: Mapping[str, str]) -> str:
    """Note a request that was answered without anything in between; its trace's id, in hexadecimal digits."""
    if not _exporting and "traceparent" not in headers:
        return f"{random.getrandbits(128) or 1:032x}"
    with ServerSpan(method, route, headers) as span:
        span.answered(status)
        return span.trace_id


class ServerSpan:
    """The span of a request, current while the block lasts.

    Where nothing is exported it is only the trace's ids (the caller's, or new ones), at a quarter of the cost.
    """

    __slots__ = ("_method", "_route", "_span", "_token")

    def __init__(self, method: str, route: str, headers: Mapping[str, str]) -> None:
        self._method = method
        self._route = route
        context = extract(headers) if "traceparent" in headers else None
        if _exporting:
            self._span: Span = TRACER.start_span(f"{method} {route}", context=context, kind=SpanKind.SERVER)
        elif context is not None and (caller := trace.get_current_span(context)).get_span_context().is_valid:
            self._span = caller
        else:
            self._span = NonRecordingSpan(
                SpanContext(random.getrandbits(128) or 1, random.getrandbits(64) or 1, is_remote=False)
            )
        self._token: Token[Context] | None = None

    @property
    def trace_id(self) -> str:
        """The trace's id in hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def answered(self, status: int) -> None:
        """Set what is known of the request by the conventions for HTTP spans."""
        if self._span.is_recording():
            self._span.set_attributes(
                {
                    "http.request.method": self._method,
                    "http.route": self._route,
                    "http.response.status_code": status,
                }
            )
            if status >= 500:
                self._span.set_status(StatusCode.ERROR)

    def __enter__(self) -> Self:
        self._token = contexts.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            contexts.detach(self._token)
        self._span.end()

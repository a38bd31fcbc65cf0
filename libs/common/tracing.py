"""OpenTelemetry traces: W3C trace context end to end, exported over OTLP/HTTP when an endpoint is set.

asyncio itself is not instrumented (the contributed instrumentor leaks with aiokafka); spans are opened by hand where
a request or an event enters a service.
"""

import random
from collections.abc import Mapping, MutableMapping
from contextvars import Token
from types import TracebackType

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind
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


class ServerSpan:
    """The span of a request, current while the block lasts.

    Where nothing is exported it is only the trace's ids (the caller's, or new ones), at a quarter of the cost.
    """

    def __init__(self, name: str, headers: Mapping[str, str]) -> None:
        context = extract(headers) if "traceparent" in headers else None
        if _exporting:
            self.span: Span = TRACER.start_span(name, context=context, kind=SpanKind.SERVER)
        elif context is not None:
            self.span = trace.get_current_span(context)
        else:
            self.span = NonRecordingSpan(
                SpanContext(random.getrandbits(128) or 1, random.getrandbits(64) or 1, is_remote=False)
            )
        self._token: Token[Context] | None = None

    def __enter__(self) -> Span:
        self._token = contexts.attach(trace.set_span_in_context(self.span))
        return self.span

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            contexts.detach(self._token)
        self.span.end()

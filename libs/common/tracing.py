"""OpenTelemetry traces: W3C trace context end to end, exported over OTLP/HTTP when an endpoint is set.

asyncio itself is not instrumented (the contributed instrumentor leaks with aiokafka); spans are opened by hand where
a request or an event enters a service.
"""

from collections.abc import Mapping, MutableMapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACER = trace.get_tracer("relaydesk")
_PROPAGATOR = TraceContextTextMapPropagator()


def configure(service: str, *, endpoint: str | None, sample_ratio: float) -> TracerProvider:
    """Make the process export spans to `endpoint` (an OTLP/HTTP collector), sampled at the trace's head.

    Without an endpoint nothing is recorded, yet trace ids still travel.
    """
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

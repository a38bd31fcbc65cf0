"""The span of a request: its trace's ids with and without somebody to export it to."""

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from libs.common import tracing
from libs.common.tracing import ServerSpan, current_traceparent, inject

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}


@pytest.fixture
def _not_exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_exporting", False)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator["Exported"]:
    """What a process with an endpoint sends there."""
    endpoints: list[str] = []
    exporter = InMemorySpanExporter()

    def exporter_to(endpoint: str) -> InMemorySpanExporter:
        endpoints.append(endpoint)
        return exporter

    monkeypatch.setattr(tracing, "_exporting", False)
    monkeypatch.setattr(tracing, "OTLPSpanExporter", exporter_to)
    monkeypatch.setattr(trace, "set_tracer_provider", lambda _provider: None)  # there is one a process
    provider = tracing.configure("test", endpoint="http://collector", sample_ratio=1.0)
    assert endpoints == ["http://collector/v1/traces"]
    monkeypatch.setattr(tracing, "TRACER", provider.get_tracer("test"))
    yield Exported(provider, exporter)
    provider.shutdown()


class Exported:
    def __init__(self, provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
        self._provider = provider
        self._exporter = exporter

    def spans(self) -> list[ReadableSpan]:
        self._provider.force_flush()
        return list(self._exporter.get_finished_spans())


def trace_id() -> str:
    """The current one."""
    version, number, span_id, _flags = (current_traceparent() or "").split("-")
    assert (version, len(number), len(span_id)) == ("00", 32, 16)
    assert int(number, 16) > 0
    assert int(span_id, 16) > 0
    return number


@pytest.mark.usefixtures("_not_exporting")
def test_a_request_goes_on_with_its_callers_trace() -> None:
    with ServerSpan("GET", "/", CALLER):
        assert trace_id() == TRACE_ID
        headers: dict[str, str] = {}
        inject(headers)
        assert headers["traceparent"].split("-")[1] == TRACE_ID
    assert current_traceparent() is None


@pytest.mark.usefixtures("_not_exporting")
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"tracestate": "a=b"},
        {"traceparent": ""},
        {"traceparent": "nonsense"},
        {"traceparent": f"00-{'0' * 32}-{SPAN_ID}-01"},
        {"traceparent": f"00-{TRACE_ID}-{'0' * 16}-01"},
        {"traceparent": f"ff-{TRACE_ID}-{SPAN_ID}-01"},
    ],
)
def test_a_request_without_a_trace_that_counts_begins_one(headers: dict[str, str]) -> None:
    seen = []
    for _ in range(2):
        with ServerSpan("GET", "/", headers):
            seen.append(trace_id())
            assert trace_id() == seen[-1], "one request has one trace"
        assert current_traceparent() is None
    assert len({*seen, TRACE_ID}) == 3


@pytest.mark.usefixtures("_not_exporting")
def test_a_trace_is_over_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), ServerSpan("GET", "/", CALLER):
        raise ZeroDivisionError
    assert current_traceparent() is None


@pytest.mark.usefixtures("_not_exporting")
async def test_requests_at_the_same_time_have_a_trace_each() -> None:
    both = asyncio.Barrier(2)

    async def request() -> tuple[str, str]:
        with ServerSpan("GET", "/", {}):
            before = trace_id()
            await both.wait()
            inner = await asyncio.create_task(traced())
            assert inner == before, "what a request starts belongs to it"
            return before, trace_id()

    async def traced() -> str:
        return trace_id()

    (first, first_later), (second, second_later) = await asyncio.gather(request(), request())
    assert (first, second) == (first_later, second_later)
    assert first != second
    assert current_traceparent() is None


def test_a_span_is_exported_under_its_caller(exported: Exported) -> None:
    with ServerSpan("GET", "/api/tickets", CALLER) as request:
        assert trace_id() == TRACE_ID
        current = trace.get_current_span().get_span_context().span_id
        request.answered(200)
    assert current_traceparent() is None
    (span,) = exported.spans()
    assert (span.name, span.kind) == ("GET /api/tickets", SpanKind.SERVER)
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, SPAN_ID)
    assert span.context.span_id == current != span.parent.span_id
    assert span.attributes == {
        "http.request.method": "GET",
        "http.route": "/api/tickets",
        "http.response.status_code": 200,
    }
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}])
def test_a_span_without_a_caller_is_the_traces_first(exported: Exported, headers: dict[str, str]) -> None:
    with ServerSpan("POST", "/", headers) as request:
        number = trace_id()
        request.answered(503)
    (span,) = exported.spans()
    assert span.context is not None
    assert (f"{span.context.trace_id:032x}", span.parent) == (number, None)
    assert span.status.status_code is StatusCode.ERROR


def test_a_span_is_exported_after_an_exception(exported: Exported) -> None:
    with pytest.raises(ZeroDivisionError), ServerSpan("GET", "/", CALLER):
        raise ZeroDivisionError
    assert current_traceparent() is None
    assert len(exported.spans()) == 1


@pytest.mark.usefixtures("_not_exporting")
def test_a_request_answered_at_once_has_its_callers_trace_or_one_of_its_own() -> None:
    assert tracing.answered("GET", "/", 200, CALLER) == TRACE_ID
    own = [tracing.answered("GET", "/", 200, headers) for headers in ({}, {}, {"traceparent": "nonsense"})]
    assert len({*own, TRACE_ID}) == 4
    assert all(len(number) == 32 and int(number, 16) for number in own)
    assert current_traceparent() is None


@pytest.mark.parametrize("headers", [{}, CALLER])
def test_the_span_of_a_request_answered_at_once_is_exported(exported: Exported, headers: dict[str, str]) -> None:
    number = tracing.answered("GET", "/api/tickets", 304, headers)
    (span,) = exported.spans()
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == number
    assert (span.parent is not None) is bool(headers)
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 304

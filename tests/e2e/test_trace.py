"""One trace from the HTTP request over outbox and Kafka to the consumers."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from infra.local.ports import HOST, free_ports
from infra.local.stack import Stack
from tests.support.clients import client, provision

Span = tuple[str, str, str]  # service, span name, parent span id


class Collector:
    """An OTLP/HTTP receiver that keeps what it is sent, by trace id."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://{HOST}:{port}"
        self._port = port
        self.spans: dict[str, list[Span]] = {}

    async def receive(self, request: web.Request) -> web.Response:
        body = ExportTraceServiceRequest.FromString(await request.read())
        for resource_spans in body.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
            for scope in resource_spans.scope_spans:
                for span in scope.spans:
                    told = (attributes["service.name"], span.name, span.parent_span_id.hex())
                    self.spans.setdefault(span.trace_id.hex(), []).append(told)
        return web.Response(content_type="application/x-protobuf")

    async def run(self) -> web.AppRunner:
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post("/v1/traces", self.receive)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, HOST, self._port).start()
        return runner


@pytest_asyncio.fixture(loop_scope="session")
async def traced(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Stack, Collector]]:
    collector = Collector(free_ports(1)[0])
    runner = await collector.run()
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "TRACE_SAMPLE_RATIO": "1"}
    stack = Stack(tmp_path_factory.mktemp("traced") / "stack", replicas=0, environ=environ)
    try:
        async with stack:
            yield stack, collector
    finally:
        stack.remove()
        await runner.cleanup()


async def test_one_trace_holds_every_hop(traced: tuple[Stack, Collector]) -> None:
    stack, collector = traced
    tenant = await provision(stack)
    trace_id = uuid.uuid4().hex
    async with client(stack, tenant) as http:
        traceparent = f"00-{trace_id}-00f067aa0ba902b7-01"
        async with http.post("/api/tickets", json={"title": "Traced"}, headers={"traceparent": traceparent}) as answer:
            assert answer.status == 201
    expected = {
        ("gateway", "POST /api/tickets"),
        ("tickets", "POST /api/tickets"),
        ("notifier", "process relaydesk.tickets.v1"),
        ("search", "process relaydesk.tickets.v1"),
    }
    async with asyncio.timeout(30):
        while not expected <= {(service, name) for service, name, _parent in collector.spans.get(trace_id, [])}:
            await asyncio.sleep(0.1)
    gateway = [span for span in collector.spans[trace_id] if span[:2] == ("gateway", "POST /api/tickets")]
    assert gateway[0][2] == "00f067aa0ba902b7"

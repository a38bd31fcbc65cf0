"""A service of two instances as the gateway calls it, while they are killed, frozen, drained, slow or wrong."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from libs.common import deadlines
from libs.common.problems import Problem
from services.gateway.upstreams import instances as instances_module
from services.gateway.upstreams.breakers import IN_A_ROW, RETRIES_AT_LEAST, RETRY_SHARE, Breaker, Circuit
from services.gateway.upstreams.instances import Instance
from services.gateway.upstreams.upstream import Answer, Upstream
from tests.support.tickets import eventually
from tests.support.upstreams import PRINCIPAL, FaultyService, faulty_services, upstream_of

PATIENCE_SECONDS = 60.0


@pytest_asyncio.fixture(loop_scope="session")
async def pair() -> AsyncIterator[list[FaultyService]]:
    async with faulty_services(2) as services:
        yield services


async def call(upstream: Upstream, path: str = "/ok", method: str = "GET", **more: object) -> Answer:
    return await upstream.call(method, path, principal=PRINCIPAL, **more)  # type: ignore[arg-type]


async def outcome(upstream: Upstream, path: str = "/ok", method: str = "GET", **more: object) -> int:
    """The status a client would get."""
    try:
        return (await call(upstream, path, method, **more)).status
    except Problem as problem:
        return problem.status


def instance_of(upstream: Upstream, service: FaultyService) -> Instance:
    return next(instance for instance in upstream._instances._all if instance.url == service.url)


async def until_circuit(upstream: Upstream, service: FaultyService, circuit: Circuit) -> None:
    async def reached() -> bool:
        return instance_of(upstream, service).breaker.circuit is circuit

    await eventually(reached, seconds=PATIENCE_SECONDS)


async def fail(*services: FaultyService) -> None:
    """From now on they answer everything with 503, as something broken before them would."""
    for service in services:
        service.signal(signal.SIGUSR1)

    async def all_fail() -> bool:
        return all([(await service.told())["failing"] for service in services])

    await eventually(all_fail)


class Load:
    """Clients that ask one after another until told to stop; how they were answered."""

    def __init__(self, upstream: Upstream, path: str = "/ok", method: str = "GET", clients: int = 8) -> None:
        self.statuses: Counter[int] = Counter()
        self._upstream = upstream
        self._asked = (path, method)
        self._going = True
        self._clients = [asyncio.create_task(self._client()) for _ in range(clients)]

    async def _client(self) -> None:
        while self._going:
            self.statuses[await outcome(self._upstream, *self._asked)] += 1

    async def more(self, requests: int) -> None:
        """Wait until so many more were answered."""
        wanted = self.statuses.total() + requests

        async def answered() -> bool:
            return self.statuses.total() >= wanted

        await eventually(answered, seconds=PATIENCE_SECONDS)

    async def stop(self) -> Counter[int]:
        self._going = False
        await asyncio.gather(*self._clients)
        return self.statuses


async def test_both_instances_are_used_and_told_how_long_the_caller_waits(pair: list[FaultyService]) -> None:
    async with upstream_of(*(service.url for service in pair)) as upstream:
        for _ in range(10):
            await call(upstream, seconds=7)
        assert [await service.asked("/ok") for service in pair] == [5, 5]
        for service in pair:
            headers = (await service.told())["headers"]
            assert 5000 < int(headers[deadlines.HEADER]) <= 7000
            assert headers["Relaydesk-Principal"]
            assert headers["Accept-Encoding"] == "identity"


async def test_a_name_is_looked_up_and_all_its_addresses_are_instances(pair: list[FaultyService]) -> None:
    async with upstream_of(f"dns+http://localhost:{pair[0].port}") as upstream:
        assert (await call(upstream)).status == 200


async def test_no_safe_request_is_lost_when_an_instance_is_killed_and_it_serves_again(
    pair: list[FaultyService],
) -> None:
    async with upstream_of(*(service.url for service in pair)) as upstream:
        load = Load(upstream)
        await load.more(500)
        await pair[0].kill()
        await until_circuit(upstream, pair[0], Circuit.OPEN)
        await load.more(500)
        await pair[0].start()
        await until_circuit(upstream, pair[0], Circuit.CLOSED)
        await load.more(100)
        statuses = await load.stop()
        assert set(statuses) == {200}
        assert await pair[0].asked("/ok") > 20


async def test_no_write_is_lost_when_an_instance_drains(pair: list[FaultyService]) -> None:
    """It says that it is draining before it stops accepting; by then nobody sends it anything."""
    async with upstream_of(*(service.url for service in pair)) as upstream:
        load = Load(upstream, method="POST")
        await load.more(100)
        pair[0].signal(signal.SIGTERM)
        assert pair[0].process is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            await pair[0].process.wait()
        await load.more(100)
        assert set(await load.stop()) == {200}


async def test_a_frozen_instance_is_left_out_while_its_requests_still_wait(pair: list[FaultyService]) -> None:
    async with upstream_of(*(service.url for service in pair), seconds=30) as upstream:
        load = Load(upstream, clients=8)
        await load.more(50)
        pair[0].signal(signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            await until_circuit(upstream, pair[0], Circuit.OPEN)
            assert time.monotonic() - frozen < 25, "before the first deadline"
            assert [await outcome(upstream) for _ in range(50)] == [200] * 50
        finally:
            pair[0].signal(signal.SIGCONT)
        await until_circuit(upstream, pair[0], Circuit.CLOSED)
        assert set(await load.stop()) == {200}


async def test_without_probes_a_frozen_instance_costs_a_few_deadlines(
    pair: list[FaultyService], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with upstream_of(*(service.url for service in pair), seconds=1, watched=False) as upstream:
        pair[0].signal(signal.SIGSTOP)
        try:
            statuses = [await outcome(upstream) for _ in range(4 * IN_A_ROW)]
        finally:
            pair[0].signal(signal.SIGCONT)
        assert Counter(statuses) == {200: 3 * IN_A_ROW, 504: IN_A_ROW}
        assert statuses[2 * IN_A_ROW :] == [200] * 2 * IN_A_ROW


async def test_retries_stay_within_their_budget(pair: list[FaultyService], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both instances fail everything, and no breaker helps: the service gets hardly more than was asked."""
    monkeypatch.setattr(Breaker, "failed", lambda _breaker, _now, **_trial: None)
    await fail(*pair)
    async with upstream_of(*(service.url for service in pair), watched=False, connections=20) as upstream:
        statuses = Counter(await asyncio.gather(*(outcome(upstream) for _ in range(200))))
        assert statuses == {503: 200}
        sent = sum([await service.asked("/ok") for service in pair])
        assert 200 + RETRIES_AT_LEAST <= sent <= 200 * (1 + RETRY_SHARE)


async def test_the_breakers_stop_what_the_budget_would_allow(pair: list[FaultyService]) -> None:
    await fail(*pair)
    async with upstream_of(*(service.url for service in pair)) as upstream:
        for service in pair:
            await until_circuit_opens_by_asking(upstream, service)
        before = sum([await service.asked("/ok") for service in pair])
        statuses = Counter(await asyncio.gather(*(outcome(upstream) for _ in range(500))))
        assert statuses == {503: 500}
        assert sum([await service.asked("/ok") for service in pair]) - before < 50
        for service in pair:
            service.signal(signal.SIGUSR1)

        async def recovers() -> bool:
            await outcome(upstream)
            return all(instance.breaker.circuit is Circuit.CLOSED for instance in upstream._instances._all)

        await eventually(recovers, seconds=PATIENCE_SECONDS)


async def until_circuit_opens_by_asking(upstream: Upstream, service: FaultyService) -> None:
    async def opened() -> bool:
        await outcome(upstream)
        return instance_of(upstream, service).breaker.circuit is not Circuit.CLOSED

    await eventually(opened, seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("method", "headers", "path", "sent"),
    [
        ("POST", {}, "/drop", 1),
        ("PATCH", {}, "/drop", 1),
        ("DELETE", {}, "/drop", 1),
        ("POST", {}, "/ok?status=503", 1),
        ("GET", {}, "/drop", 3),
        ("GET", {}, "/drop?sent=1", 3),
        ("HEAD", {}, "/drop", 3),
        ("GET", {}, "/ok?status=503", 3),
        ("GET", {}, "/ok?status=500", 1),
        ("POST", {"Idempotency-Key": "1"}, "/drop", 3),
    ],
)
async def test_only_what_may_be_is_sent_twice(
    pair: list[FaultyService], method: str, headers: dict[str, str], path: str, sent: int
) -> None:
    async with upstream_of(*(service.url for service in pair), watched=False) as upstream:
        for _ in range(2):  # on connections that were used before as well
            await call(upstream)
        body = b"{}" if method in {"POST", "PATCH"} else None
        assert await outcome(upstream, path, method, headers=headers, body=body) in {500, 503}
        bare = path.partition("?")[0]
        assert sum([await service.asked(bare) for service in pair]) == sent + 2 * (bare == "/ok")


async def test_a_request_is_not_sent_again_to_the_instance_that_failed_it(pair: list[FaultyService]) -> None:
    failing, busy = pair
    await fail(failing)
    async with upstream_of(busy.url, failing.url, watched=False, connections=1) as upstream:
        waiting = asyncio.create_task(outcome(upstream, "/ok?seconds=2"))
        await eventually(lambda: busy.asked("/ok"))
        assert await outcome(upstream) == 503
        assert await failing.asked("/ok") == 1
        assert await waiting == 200


async def test_a_write_that_could_not_be_sent_goes_to_another_instance(pair: list[FaultyService]) -> None:
    await pair[0].kill()
    async with upstream_of(*(service.url for service in pair), watched=False) as upstream:
        assert [await outcome(upstream, method="POST", body=b"{}") for _ in range(10)] == [200] * 10
    assert await pair[1].asked("/ok") == 10


async def test_an_instance_that_says_when_to_come_again_is_well(pair: list[FaultyService]) -> None:
    async with upstream_of(pair[0].url, watched=False) as upstream:
        for _ in range(3 * IN_A_ROW):
            answer = await call(upstream, "/later")
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert instance_of(upstream, pair[0]).breaker.circuit is Circuit.CLOSED


async def test_the_only_instance_is_asked_until_it_is_there_again(pair: list[FaultyService]) -> None:
    await pair[0].kill()
    async with upstream_of(pair[0].url, watched=False) as upstream:
        assert [await outcome(upstream) for _ in range(20)] == [503] * 20
        await pair[0].start()
        assert [await outcome(upstream) for _ in range(20)] == [200] * 20


async def test_a_slow_answer_ends_at_the_callers_deadline(pair: list[FaultyService]) -> None:
    async with upstream_of(pair[0].url, watched=False) as upstream:
        began = time.monotonic()
        assert await outcome(upstream, "/ok?seconds=50", seconds=0.5) == 504
        assert 0.4 < time.monotonic() - began < 30
        assert await pair[0].asked("/ok") == 1


async def test_an_instance_that_says_that_it_is_too_late_has_timed_out_as_well(pair: list[FaultyService]) -> None:
    """For more than 5 s aiohttp rounds up, and the instance is mostly first to say it; a 504 in time is an answer."""
    async with upstream_of(pair[0].url, watched=False) as upstream:
        for _ in range(IN_A_ROW):
            assert await outcome(upstream, "/ok?status=504") == 504
        await until_circuit(upstream, pair[0], Circuit.CLOSED)
        late = [outcome(upstream, "/late", seconds=5.1) for _ in range(IN_A_ROW)]
        assert await asyncio.gather(*late) == [504] * IN_A_ROW
        await until_circuit(upstream, pair[0], Circuit.OPEN)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/large?parts=100&told=1", 502, "bad_gateway"),
        ("/large?parts=100", 502, "bad_gateway"),
        ("/nonsense", 502, "bad_gateway"),
        ("/drop?sent=1", 503, "service_unavailable"),
    ],
)
async def test_an_answer_that_cannot_be_used_has_a_code(
    pair: list[FaultyService], path: str, status: int, code: str
) -> None:
    async with upstream_of(pair[0].url, watched=False, answer_bytes=10 * 65536) as upstream:
        with pytest.raises(Problem) as raised:
            await call(upstream, path)
        assert (raised.value.status, raised.value.code) == (status, code)
        for form in ("", "&told=1"):
            assert len((await call(upstream, f"/large?parts=10{form}")).body) == 10 * 65536


async def test_what_is_too_large_is_not_read(pair: list[FaultyService]) -> None:
    async with upstream_of(pair[0].url, watched=False, answer_bytes=65536) as upstream:
        assert await outcome(upstream, "/large?parts=3000") == 502
    assert (await pair[0].told())["sent"] < 200 * 65536


async def test_beyond_the_bounds_requests_are_refused_at_once(pair: list[FaultyService]) -> None:
    async with upstream_of(pair[0].url, watched=False, connections=3, waiting=4) as upstream:
        asked = [asyncio.create_task(outcome(upstream, "/ok?seconds=2")) for _ in range(20)]
        done, waiting = await asyncio.wait(asked, timeout=1.5)
        assert [task.result() for task in done] == [503] * 13
        assert await pair[0].asked("/ok") == 3
        assert [await task for task in waiting] == [200] * 7


async def test_what_becomes_of_requests_is_counted(pair: list[FaultyService]) -> None:
    service = pair[0]

    def counted(name: str) -> float:
        labels = {"upstream": "tickets", "instance": f"127.0.0.1:{service.port}", "outcome": name}
        return REGISTRY.get_sample_value("upstream_requests_total", labels) or 0

    async with upstream_of(service.url, watched=False) as upstream:
        await call(upstream)
        await outcome(upstream, "/ok?seconds=9", seconds=0.2)
        await outcome(upstream, "/drop", "POST")
        await outcome(upstream, "/nonsense")
        gone = asyncio.create_task(call(upstream, "/ok?seconds=9"))
        await asyncio.sleep(0.2)
        gone.cancel()
        await asyncio.wait({gone})
        await service.kill()
        await outcome(upstream)
        names = ("answered", "timed_out", "dropped", "unreadable", "abandoned", "refused")
        assert {name: counted(name) for name in names} == dict.fromkeys(names, 1)
        assert instances_module._OPEN_CIRCUITS.labels("tickets")._value.get() == 1

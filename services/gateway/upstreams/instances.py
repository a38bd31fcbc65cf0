"""The instances of a service: which there are, which are well, and whose turn it is."""

import asyncio
import collections
import contextlib
import enum
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog
from prometheus_client import Counter, Gauge

from libs.common import background
from libs.common.problems import Problem, unavailable
from libs.common.settings import comma_list, url
from services.gateway.upstreams.breakers import Breaker, Circuit

DNS = "dns+http"
_PROBE_SECONDS = 2.0
_PROBE_EVERY_SECONDS = 1.0
_LOOK_UP_EVERY_SECONDS = 5.0
_LOOK_UP_SECONDS = 2.0
_REQUESTS = Counter(
    "upstream_requests_total", "Requests to the instances of other services.", ["upstream", "instance", "outcome"]
)
_OPEN_CIRCUITS = Gauge("upstream_open_circuits", "Instances that are left out or on trial.", ["upstream"])
log = structlog.get_logger()

_addresses = comma_list(url("http", "https", DNS))
LookUp = Callable[[str, int], Awaitable[Sequence[str]]]


class Outcome(enum.StrEnum):
    """What became of a request to an instance."""

    ANSWERED = "answered"
    FAILED = "failed"  # 502, or 503 without Retry-After: a proxy, or an instance that is going
    REFUSED = "refused"  # no connection could be made; nothing was sent
    UNREACHABLE = "unreachable"  # none was made in time; nothing was sent
    DROPPED = "dropped"
    TIMED_OUT = "timed_out"
    UNREADABLE = "unreadable"  # no HTTP
    TOO_LARGE = "too_large"
    ABANDONED = "abandoned"  # the client has gone


_ANSWERS = frozenset({Outcome.ANSWERED, Outcome.TOO_LARGE})


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one service as one gateway process calls it; `answer_bytes` not for streams."""

    connections: int = 256  # to an instance, streams apart
    waiting: int = 1024  # requests that wait for a connection; more are refused at once
    streams: int = 4096
    answer_bytes: int = 32 * 1024 * 1024


class Instance:
    """One process, or what stands for several, at one address."""

    __slots__ = ("_counters", "_upstream", "breaker", "in_flight", "last_answer", "name", "ready", "url")

    def __init__(self, upstream: str, address: str, changed: Callable[[], None]) -> None:
        self.url = address
        self.name = urlsplit(address).netloc
        self.in_flight = 0
        self.ready = True  # until it says that it is draining
        self.last_answer = 0.0
        self._upstream = upstream
        self._counters: dict[Outcome, Counter] = {}

        def told(circuit: Circuit, reason: str) -> None:
            if circuit is Circuit.OPEN:
                log.warning("instance_left_out", upstream=upstream, instance=self.name, reason=reason)
            elif circuit is Circuit.CLOSED:
                log.info("instance_back", upstream=upstream, instance=self.name)
            changed()

        self.breaker = Breaker(told)

    def ended(self, outcome: Outcome, *, trial: bool) -> None:
        """Draw the conclusions from a request."""
        now = time.monotonic()
        if outcome in _ANSWERS:
            self.last_answer = now
            self.breaker.succeeded(now, trial=trial)
        elif outcome is not Outcome.ABANDONED:
            self.breaker.failed(now, trial=trial)
            if outcome is Outcome.REFUSED:
                self.breaker.open(now, "refuses connections")
        elif trial:
            self.breaker.trying = False
        counter = self._counters.get(outcome)
        if counter is None:
            counter = self._counters[outcome] = _REQUESTS.labels(self._upstream, self.name, outcome)
        counter.inc()

    def forget(self) -> None:
        """Its time series end with it."""
        for outcome in self._counters:
            _REQUESTS.remove(self._upstream, self.name, outcome)


class Turn:
    """A connection to an instance that one request may use; `trial` when the circuit depends on it."""

    __slots__ = ("instance", "trial")

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.trial = instance.breaker.circuit is not Circuit.CLOSED
        if self.trial:
            instance.breaker.trying = True
        instance.in_flight += 1


class _Standing(enum.IntEnum):
    """What an instance is worth to the next request, the best first; well is also one that is to be tried."""

    WELL = 0
    DRAINING = 1
    OUT = 2
    USELESS = 3


class Instances:
    """Round-robin over the instances that are well.

    Every second each is asked `/readyz`: one that is draining is used only when all others are out, one that refuses
    connections or has answered nothing for two seconds is left out at once (see `Breaker` for the rest). When all are
    out, one request at a time tries each of them; the others are refused rather than made to wait.
    """

    def __init__(self, name: str, addresses: Sequence[str], bounds: Bounds, *, look_up: LookUp | None = None) -> None:
        """`addresses`: `http(s)://…` for an instance, `dns+http://name:port` for all that the name leads to.

        `look_up` finds the IP addresses of a host and port; by default the system's resolver.
        """
        self._name = name
        self._bounds = bounds
        self._look_up = look_up or _resolve
        self._names = [address for address in addresses if address.startswith(f"{DNS}://")]
        self._urls = {"": [address for address in addresses if address not in self._names]}
        self._all: list[Instance] = []
        self._last = -1
        self._waiting: collections.deque[asyncio.Future[Turn]] = collections.deque()
        self._rejected = _REQUESTS.labels(name, "", "rejected")
        self._open_circuits = _OPEN_CIRCUITS.labels(name)
        self._set_instances()

    def take(self, *, besides: Instance | None = None) -> Turn | None:
        """A turn, round-robin, not of `besides`; to be given back. None: there is none, and who waits comes first."""
        count = len(self._all)
        chosen, best = -1, _Standing.USELESS
        for step in range(1, count + 1):
            place = (self._last + step) % count
            instance = self._all[place]
            standing = self._standing(instance)
            if standing < best and instance is not besides:
                chosen, best = place, standing
                if standing is _Standing.WELL:
                    break
        if chosen < 0 or (best is _Standing.OUT and not self._are_all_out()):
            return None
        self._last = chosen
        return Turn(self._all[chosen])

    async def wait(self, seconds: float) -> Turn:
        """Wait for a turn, first come, first served.

        Raises:
            Problem: `service_unavailable` (503) at once when all instances are out or too many requests wait already,
                `deadline_exceeded` (504) after `seconds`.
        """
        if self._are_all_out() or len(self._waiting) >= self._bounds.waiting:
            self._rejected.inc()
            raise unavailable(f"The {self._name} service")
        place: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(seconds):
                return await place
        except (TimeoutError, asyncio.CancelledError) as error:
            if place in self._waiting:
                self._waiting.remove(place)
            elif place.exception() is None:
                self.give_back(place.result(), Outcome.ABANDONED)  # its turn came in the same moment
            if isinstance(error, TimeoutError):
                self._rejected.inc()
                raise Problem("deadline_exceeded", f"The {self._name} service did not answer in time.") from error
            raise

    def give_back(self, turn: Turn, outcome: Outcome) -> None:
        turn.instance.in_flight -= 1
        turn.instance.ended(outcome, trial=turn.trial)
        if self._waiting:
            self._hand_on()

    @contextlib.asynccontextmanager
    async def watched(self, http: aiohttp.ClientSession) -> AsyncIterator[None]:
        """Look names up and look after the instances while the block lasts."""
        await self._look_up_names()

        async def look_up() -> None:
            while self._names:
                await asyncio.sleep(_LOOK_UP_EVERY_SECONDS)
                await self._look_up_names()

        async def look_after() -> None:
            while True:
                await asyncio.gather(*(self._probe(http, instance) for instance in self._all))
                await asyncio.sleep(_PROBE_EVERY_SECONDS)

        async with (
            background.running(f"look_up_{self._name}", look_up),
            background.running(f"probe_{self._name}", look_after),
        ):
            yield

    def _standing(self, instance: Instance) -> "_Standing":
        breaker = instance.breaker
        if breaker.circuit is Circuit.CLOSED:
            if instance.in_flight >= self._bounds.connections:
                return _Standing.USELESS
            return _Standing.WELL if instance.ready else _Standing.DRAINING
        if breaker.trying:
            return _Standing.USELESS
        return _Standing.WELL if breaker.circuit is Circuit.HALF_OPEN else _Standing.OUT

    def _are_all_out(self) -> bool:
        return all(instance.breaker.circuit is not Circuit.CLOSED for instance in self._all)

    def _hand_on(self) -> None:
        """Give turns to those who wait, as far as there are some; nobody waits for instances that are out."""
        while self._waiting:
            turn = self.take()
            if turn is not None:
                self._waiting.popleft().set_result(turn)
            elif self._are_all_out():
                self._rejected.inc()
                self._waiting.popleft().set_exception(unavailable(f"The {self._name} service"))
            else:
                return

    def _set_instances(self) -> None:
        """Those of now; who is still there keeps what is known of it."""
        known = {instance.url: instance for instance in self._all}
        urls = dict.fromkeys(url for urls in self._urls.values() for url in urls)
        self._all = [known.get(url) or Instance(self._name, url, self._circuit_changed) for url in urls]
        for gone in known.keys() - urls.keys():
            known[gone].forget()
        self._circuit_changed()
        self._hand_on()

    def _circuit_changed(self) -> None:
        self._open_circuits.set(sum(instance.breaker.circuit is not Circuit.CLOSED for instance in self._all))

    async def _look_up_names(self) -> None:
        """A name that cannot be looked up keeps the addresses it had."""
        for address in self._names:
            parts = urlsplit(address)
            port = parts.port or 80
            try:
                async with asyncio.timeout(_LOOK_UP_SECONDS):
                    found = await self._look_up(parts.hostname or "", port)
            except (OSError, TimeoutError) as error:
                log.warning("look_up_failed", upstream=self._name, name=parts.hostname, error=repr(error))
                continue
            self._urls[address] = [f"http://{f'[{ip}]' if ':' in ip else ip}:{port}" for ip in sorted(set(found))]
        self._set_instances()

    async def _probe(self, http: aiohttp.ClientSession, instance: Instance) -> None:
        began = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS)
        try:
            async with http.get(f"{instance.url}/readyz", timeout=timeout, allow_redirects=False) as answer:
                ready = answer.status != 503
        except aiohttp.ClientConnectorError:
            instance.breaker.open(time.monotonic(), "refuses connections", unreachable=True)
        except TimeoutError:
            if instance.last_answer < began:
                instance.breaker.open(
                    time.monotonic(), f"has answered nothing for {_PROBE_SECONDS:g} s", unreachable=True
                )
        except aiohttp.ClientError:
            pass  # between two lives; the next probe will tell
        else:
            if ready and not instance.ready:
                log.info("instance_ready", upstream=self._name, instance=instance.name)
            elif instance.ready and not ready:
                log.info("instance_draining", upstream=self._name, instance=instance.name)
            instance.ready = ready
            instance.last_answer = now = time.monotonic()
            if ready:
                instance.breaker.rested(now)
        self._hand_on()


def parse_addresses(text: str) -> tuple[str, ...]:
    """Addresses as `Instances` takes them, separated by commas.

    Raises:
        ValueError: for none, or for one that is no such address.
    """
    addresses = _addresses(text)
    if not addresses:
        raise ValueError("expected at least one address")
    for address in addresses:
        parts = urlsplit(address)
        if not parts.hostname or (parts.scheme == DNS and parts.path):
            raise ValueError(f"expected an address with a host, and no path after {DNS}://")
        _ = parts.port  # raises for what is no port
    return addresses


async def _resolve(host: str, port: int) -> Sequence[str]:
    """The IPv4 and IPv6 addresses of a host, by the system's resolver, which keeps them as long as it may."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_family, address in found]

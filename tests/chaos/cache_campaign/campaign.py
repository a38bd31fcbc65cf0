"""A campaign against the cache: clients write and read, faults fall, and every read is judged at the end."""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import aiohttp

from tests.chaos.cache_campaign.canary import Canary
from tests.chaos.cache_campaign.cast import Cast, cast, now
from tests.chaos.cache_campaign.checker import Kind, Violation, check
from tests.chaos.cache_campaign.clients import TICKETS, Client, Office
from tests.chaos.cache_campaign.faults import Fault, Order, cause, disturb_replicas, plan
from tests.chaos.cache_campaign.records import History
from tests.support.beside import beside

LAST_WORDS_SECONDS = 60.0
AFTERMATH_SECONDS = 2.5  # reads go on for so long after the last write

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Orders:
    """How long a campaign is: `faults` of the kinds `among`, and in any case `seconds`.

    `writes` is the share of writes among what clients do, `pause` (seconds) what they wait between two deeds, `holds`
    the share of upstream calls that a gateway holds up.
    """

    seed: int
    faults: int
    seconds: float = 0.0
    among: Sequence[Fault] = tuple(Fault)
    plant: str = ""
    clients: int = 12
    patrols: int = 2
    writes: float = 0.08
    pause: float = 0.03
    holds: float = 0.05


@dataclasses.dataclass
class Result:
    """What came of it; `metrics` are the sums of the gateways' counters over all their lives, `lags` are seconds from
    a write to the bump by its event."""

    orders: Orders
    history: History = dataclasses.field(default_factory=History)
    violations: list[Violation] = dataclasses.field(default_factory=list)
    staleness: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)
    held_back: list[float] = dataclasses.field(default_factory=list)
    metrics: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    lags: list[float] = dataclasses.field(default_factory=list)
    replicas: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


async def run(orders: Orders, folder: Path, tell: Tell = print) -> Result:
    """Run a campaign with servers of its own in `folder`. Faults are told as they fall."""
    started = time.monotonic()
    result = Result(orders)
    async with cast(folder, seed=orders.seed, plant=orders.plant, holds=orders.holds) as company:
        canary = Canary(company, company.offices[-1][0])
        async with (
            beside(canary.run()),
            beside(disturb_replicas(company, orders.seed, result.replicas)),
            _using(company, orders, result),
        ):
            begun = now()
            await canary.flows()
            tell(f"events flow {now() - begun:.1f} s after the start")
            begun = now()
            for number, order in enumerate(itertools.islice(plan(orders.seed, orders.among), orders.faults), start=1):
                tell(f"{number:4} {await _strike(company, canary, order, result)}")
            await asyncio.sleep(max(0.0, begun + orders.seconds - now()))
        for gateway in company.gateways:
            result.metrics.update(await company.metrics(gateway))
        for process in (company.tickets, company.search, *(gateway.process for gateway in company.gateways)):
            if not process.alive:
                result.violations.append(Violation(Kind.PROCESS, f"{process.name}: {process.failure()}"))
    result.lags = [lag for _at, lag in canary.lags]
    verdict = check(result.history)
    result.violations += verdict.violations
    result.staleness, result.held_back = verdict.staleness, verdict.held_back
    result.seconds = time.monotonic() - started
    return result


async def _strike(company: Cast, canary: Canary, order: Order, result: Result) -> str:
    """Cause a fault, and wait until events flow as before; the clients go on all the time."""
    if order.fault is Fault.GATEWAY_KILL:
        result.metrics.update(await company.metrics(company.gateways[order.gateway]))
    before = len(result.history.reads)
    window = await cause(company, order)
    result.history.windows.append(window)
    try:
        await canary.flows()
    except TimeoutError:
        result.violations.append(Violation(Kind.PIPELINE, f"after {order}"))
    if window.holds_events:
        window.end = now()
    reads = len(result.history.reads) - before
    return f"{order}: {window.shown}; events flow {now() - window.mended:.1f} s after; {reads} reads"


@contextlib.asynccontextmanager
async def _using(company: Cast, orders: Orders, result: Result) -> AsyncIterator[None]:
    """Clients of all organizations but the last, which is the canary's."""
    chance = random.Random(orders.seed)
    offices = [Office(users) for users in company.offices[:-1]]
    stop = asyncio.Event()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        clients = [
            Client(number, company, offices[number % len(offices)], result.history, http, seed=chance.getrandbits(32))
            for number in range(orders.clients + orders.patrols)
        ]
        for office, client in zip(offices, clients, strict=False):
            while len(office.tickets) < TICKETS:
                await client.create()
        tasks = [
            asyncio.create_task(client.work(stop, writes=orders.writes, pause=orders.pause))
            for client in clients[: orders.clients]
        ]
        tasks += [asyncio.create_task(client.patrol(stop, pause=orders.pause)) for client in clients[orders.clients :]]
        try:
            yield
            for client in clients:
                client.only_reads = True  # what is old stays old now, for everybody to see
            await asyncio.sleep(AFTERMATH_SECONDS)
            stop.set()
            done, late = await asyncio.wait(tasks, timeout=LAST_WORDS_SECONDS)
            if late:
                result.violations.append(Violation(Kind.ERROR, f"{len(late)} clients were not answered until the end"))
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

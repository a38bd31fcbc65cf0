"""A campaign: writers write, faults fall at named points, then everything drains and is checked."""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import asyncpg

from libs.common.identity import Signer
from libs.common.models import Role
from tests.chaos.campaign.cast import Cast, cast
from tests.chaos.campaign.checker import Kind, Violation, check
from tests.chaos.campaign.gathering import gather
from tests.chaos.campaign.points import SPARED, Actor, Blow, Fault, plan
from tests.chaos.campaign.watching import Watch
from tests.chaos.campaign.writers import Office, Records, http_session, names
from tests.support.beside import beside

HIT_SECONDS = 30.0  # a point that nobody passes for so long (a relay without a shard) is given up
DRAIN_SECONDS = 300.0
LAST_WORDS_SECONDS = 120.0
OFFICES = 2
PARTS = {Actor.BROKER: "kafka", Actor.DATABASE: "postgres"}


@dataclasses.dataclass(frozen=True)
class Orders:
    """How long a campaign is: at least `events` and `faults`, then `outage` seconds without Kafka and `calm` ones."""

    seed: int
    events: int
    faults: int
    writers: int = 12
    outage: float = 0.0
    calm: float = 0.0


@dataclasses.dataclass
class Result:
    """What came of it; `hits` counts by (point, actor, blow)."""

    orders: Orders
    hits: collections.Counter[tuple[str, Actor, Blow]]
    missed: int
    records: Records
    watch: Watch
    calm: Watch | None
    violations: list[Violation]
    events: int
    messages: int
    outage_rows: int
    drain_seconds: float
    seconds: float


Tell = Callable[[str], None]


async def run(orders: Orders, folder: Path, tell: Tell = print) -> Result:
    """Run a campaign with servers of its own in `folder`. Faults are told as they fall."""
    started = time.monotonic()
    async with cast(folder) as company, http_session() as http:
        database = company.database.superuser
        records = Records()
        watch = Watch(database, {name: company.processes[name] for name in sorted(SPARED)})
        stop = asyncio.Event()
        calm: Watch | None = None
        outage_rows = 0
        async with beside(watch.run()), _writing(company, orders, records, http, stop):
            hits, missed = await _strike(company, orders, records, tell)
            if orders.outage:
                outage_rows = await _without_kafka(company, orders.outage, tell)
            if orders.calm:
                tell(f"{orders.calm:.0f} s without a fault")
                calm = Watch(database, {})
                async with beside(calm.run()):
                    await asyncio.sleep(orders.calm)
            while records.events < orders.events:
                await asyncio.sleep(0.2)
            stop.set()
        drained = time.monotonic()
        await _drain(database)
        drain_seconds = time.monotonic() - drained
        tell(f"drained {drain_seconds:.1f} s after the last write; reading everything back")
        evidence = await gather(company.stack, database, records)
        ended = [
            Violation(Kind.PROCESS, f"{name}: {process.failure()}")
            for name, process in company.processes.items()
            if not process.alive
        ]
    return Result(
        orders=orders,
        hits=hits,
        missed=missed,
        records=records,
        watch=watch,
        calm=calm,
        violations=[*records.violations, *ended, *check(evidence)],
        events=len(evidence.history),
        messages=len(evidence.delivered),
        outage_rows=outage_rows,
        drain_seconds=drain_seconds,
        seconds=time.monotonic() - started,
    )


@contextlib.asynccontextmanager
async def _writing(
    company: Cast, orders: Orders, records: Records, http: aiohttp.ClientSession, stop: asyncio.Event
) -> AsyncIterator[None]:
    """Writers of two organizations, each with an admin and an agent; at the end what they have begun is finished."""
    signer = Signer(company.stack.credentials.signing_key("gateway"))
    urls = [process.url for name, process in company.processes.items() if name.startswith("service")]
    numbers = names()
    chance = random.Random(orders.seed)
    offices = []
    for _ in range(OFFICES):
        people = await company.database.organization(Role.ADMIN, Role.AGENT)
        offices.append(Office(people, urls, signer, records, numbers))
        await offices[-1].prepare(http)
    tasks = [
        asyncio.create_task(offices[n % OFFICES].writer(n, http, chance.getrandbits(32)).write(stop))
        for n in range(orders.writers)
    ]
    try:
        yield
        _done, late = await asyncio.wait(tasks, timeout=LAST_WORDS_SECONDS)
        for task in tasks:
            if task in late:
                records.violations.append(Violation(Kind.ANSWER, "a writer was not answered until the end"))
            else:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _strike(
    company: Cast, orders: Orders, records: Records, tell: Tell
) -> tuple[collections.Counter[tuple[str, Actor, Blow]], int]:
    """Cause the planned faults one after the other; a point that is not reached is tried again by the next ones."""
    hits: collections.Counter[tuple[str, Actor, Blow]] = collections.Counter()
    missed = 0
    faults = plan(orders.seed)
    while hits.total() < orders.faults:
        fault = next(faults)
        records.ahead = records.events * orders.faults > orders.events * (hits.total() + 1)
        for attempt in itertools.count(1):
            if await _cause(company, fault):
                hits[fault.point, fault.actor, fault.blow] += 1
                tell(f"{hits.total():4} {fault}; {records.events} events")
                break
            missed += 1
            tell(f"     {fault}: not reached")
            if attempt == 3:
                break
        for name, process in company.processes.items():
            if not process.alive:
                records.violations.append(Violation(Kind.PROCESS, f"{name}: {process.failure()}"))
                await process.start()
    records.ahead = False
    return hits, missed


async def _cause(company: Cast, fault: Fault) -> bool:
    """Arm the point, wait until it is reached, strike and repair. False when it is not reached."""
    process = company.processes[fault.process]
    own = fault.actor not in PARTS
    hit = company.lines.arm(fault.process, fault.point, str(fault.blow) if own else "hold", fault.passes)
    try:
        await asyncio.wait_for(hit, HIT_SECONDS)
    except TimeoutError:
        company.lines.disarm(fault.process)
        return False
    if own and fault.blow is Blow.KILL:
        assert process.process is not None
        await process.process.wait()
        await asyncio.sleep(fault.seconds)
        await process.start()
    elif own:
        await asyncio.sleep(fault.seconds)
        process.kill(signal.SIGCONT)
    else:
        await _hit_server(company, fault)
    return True


async def _hit_server(company: Cast, fault: Fault) -> None:
    part = PARTS[fault.actor]
    if fault.blow is Blow.KILL:
        company.stack.kill(part)
        await company.stack.wait_until_dead(part)
    else:
        company.stack.pause(part)
    if fault.early:
        company.lines.go(fault.process)
    await asyncio.sleep(fault.seconds)
    if fault.blow is Blow.KILL:
        await company.stack.restart(part)
    else:
        company.stack.resume(part)
    if not fault.early:
        company.lines.go(fault.process)


async def _without_kafka(company: Cast, seconds: float, tell: Tell) -> int:
    """Writes go on, events wait, and Kafka comes back to all of them. Returns how many waited."""
    tell(f"Kafka is away for {seconds:.0f} s")
    kafka = company.stack.parts["kafka"]
    company.stack.kill("kafka")
    await company.stack.wait_until_dead("kafka")
    await asyncio.sleep(seconds)
    waiting = int(await company.database.superuser.fetchval("SELECT count(*) FROM outbox"))
    await kafka.start()
    tell(f"Kafka is back, {waiting} events wait")
    return waiting


async def _drain(database: asyncpg.Pool) -> None:
    async with asyncio.timeout(DRAIN_SECONDS):
        while await database.fetchval("SELECT count(*) FROM outbox"):
            await asyncio.sleep(0.05)

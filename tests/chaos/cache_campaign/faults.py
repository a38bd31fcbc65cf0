"""What befalls the cache, one fault after the other; each is shown to have happened.

A plan follows from its seed. Every kind comes up once in a round.
"""

import asyncio
import dataclasses
import enum
import random
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from redis.asyncio import Redis

from infra.local.postgres import PostgresServer
from tests.chaos.cache_campaign.cast import GATEWAYS, SEARCH, Cast, now
from tests.chaos.cache_campaign.records import Window

EVICTED = 200
GATEWAYS_HIT = (0, 0, 1, 1, *range(2, GATEWAYS))  # most those that keep what they have
LAG_SECONDS = 4.0  # longer than anybody may be told something old


class Fault(enum.StrEnum):
    """Kinds of faults; the comment says what is shown of each."""

    REDIS_KILL = "Redis killed and started again, empty"  # the keys it had
    REDIS_PAUSE = "Redis frozen"  # for how long
    REDIS_FLUSH = "Redis flushed"  # the keys it had
    EVICTION = "tags and entries evicted"  # how many
    PUBSUB_KILL = "invalidation connections killed"  # how many
    LINE_DELAY = "a gateway's line to Redis slow"  # pieces of data held up
    LINE_LAG = "a gateway's invalidations late, without a silence"  # the same
    LINE_HOLE = "a gateway's line to Redis silent"  # the same
    LINE_CUT = "a gateway's connections to Redis cut"  # how many
    GATEWAY_KILL = "gateway killed and started again"  # its process id
    GATEWAY_PAUSE = "gateway frozen"  # for how long
    EVENTS_KILL = "search service killed and started again"  # its process id
    EVENTS_HOLE = "the search service's line to Redis silent"  # pieces of data held up


HOLDS_EVENTS = frozenset({Fault.REDIS_KILL, Fault.REDIS_PAUSE, Fault.EVENTS_KILL, Fault.EVENTS_HOLE})
CUTS_OFF_ALL = frozenset({Fault.REDIS_KILL, Fault.REDIS_PAUSE})
CUTS_OFF_ONE = frozenset({Fault.LINE_DELAY, Fault.LINE_LAG, Fault.LINE_HOLE, Fault.LINE_CUT})


@dataclasses.dataclass(frozen=True)
class Order:
    """One fault: what, for how many seconds, at which gateway if it has one; `slow` is a delay in seconds."""

    fault: Fault
    seconds: float
    gateway: int
    slow: float

    def __str__(self) -> str:
        return f"{self.fault} (gateway {self.gateway}, {self.seconds:.1f} s, delay {self.slow:.1f} s)"


def plan(seed: int, among: Sequence[Fault] = tuple(Fault)) -> Iterator[Order]:
    """Faults without end."""
    chance = random.Random(seed)
    while True:
        for fault in chance.sample(among, len(among)):
            short = chance.random() < 0.5 and fault is not Fault.GATEWAY_PAUSE
            seconds = chance.uniform(0.3, 1.5) if short else chance.uniform(2.5, 4.5)
            yield Order(fault, seconds, chance.choice(GATEWAYS_HIT), chance.choice([0.3, 0.9, 1.6, 3.5]))


async def cause(company: Cast, order: Order) -> Window:
    """Do it and undo it. `end` is not known yet where it holds back events."""
    everybody = frozenset(range(GATEWAYS))
    one = frozenset({order.gateway})
    window = Window(
        str(order.fault),
        now(),
        unreachable=one if order.fault in {Fault.GATEWAY_KILL, Fault.GATEWAY_PAUSE} else frozenset(),
        cut_off=everybody
        if order.fault in CUTS_OFF_ALL
        else one
        if order.fault in CUTS_OFF_ONE or order.fault is Fault.GATEWAY_PAUSE
        else frozenset(),
        holds_events=order.fault in HOLDS_EVENTS,
        searchless=order.fault is Fault.EVENTS_KILL,
    )
    window.shown = await _DEEDS[order.fault](company, order)
    window.mended = window.end = now()
    return window


async def _kill_redis(company: Cast, order: Order) -> str:
    keys = await _redis(company, "DBSIZE")
    company.stack.kill("cache-redis")
    await company.stack.wait_until_dead("cache-redis")
    await asyncio.sleep(order.seconds)
    await company.stack.restart("cache-redis")
    return f"{keys} keys lost"


async def _pause_redis(company: Cast, order: Order) -> str:
    company.stack.pause("cache-redis")
    await asyncio.sleep(order.seconds)
    company.stack.resume("cache-redis")
    return f"{order.seconds:.1f} s"


async def _flush(company: Cast, _order: Order) -> str:
    keys = await _redis(company, "DBSIZE")
    await _redis(company, "FLUSHALL")
    return f"{keys} keys lost"


async def _kill_pubsub(company: Cast, _order: Order) -> str:
    return f"{await _redis(company, 'CLIENT', 'KILL', 'TYPE', 'pubsub')} connections killed"


async def _kill_search(company: Cast, _order: Order) -> str:
    process = company.search.process
    assert process is not None
    company.search.kill(signal.SIGKILL)
    await process.wait()
    await company.search.start()
    return f"process {process.pid} ended"


async def _kill_gateway(company: Cast, order: Order) -> str:
    gateway = company.gateways[order.gateway]
    process = gateway.process.process
    assert process is not None
    gateway.process.kill(signal.SIGKILL)
    await process.wait()
    gateway.lives += 1
    await gateway.process.start()
    return f"process {process.pid} ended"


async def _pause_gateway(company: Cast, order: Order) -> str:
    process = company.gateways[order.gateway].process.process
    assert process is not None
    process.pause()
    await asyncio.sleep(order.seconds)
    process.resume()
    return f"{order.seconds:.1f} s"


async def _cut_line(company: Cast, order: Order) -> str:
    line = company.gateways[order.gateway].name
    before = await company.proxies.order(line, "pass")
    after = await company.proxies.order(line, "cut")
    return f"{after['cut'] - before['cut']} connections cut"


async def _silence_search(company: Cast, order: Order) -> str:
    return await _slow_line(company, SEARCH, "hole", order)


async def _silence(company: Cast, order: Order) -> str:
    return await _slow_line(company, company.gateways[order.gateway].name, "hole", order)


async def _delay(company: Cast, order: Order) -> str:
    return await _slow_line(company, company.gateways[order.gateway].name, "delay", order)


async def _lag(company: Cast, order: Order) -> str:
    order = dataclasses.replace(order, seconds=2 * LAG_SECONDS, slow=LAG_SECONDS)
    return await _slow_line(company, company.gateways[order.gateway].name, "lag", order)


async def _slow_line(company: Cast, line: str, mode: str, order: Order) -> str:
    before = await company.proxies.order(line, mode, order.slow)
    await asyncio.sleep(order.seconds)
    # Half of the holes end with what waited, the other half with the end of the connections.
    if mode == "hole" and order.slow > 1:
        await company.proxies.order(line, "cut")
    after = await company.proxies.order(line, "pass")
    return f"{after['held'] - before['held']} pieces held up"


async def _evict(company: Cast, _order: Order) -> str:
    """Half of the keys there are, at random, as a server that is full would."""
    async with Redis.from_url(company.stack.cache_redis_url) as redis:
        chance = random.Random(now())
        keys = [key async for key in redis.scan_iter(count=1000)]
        chosen = [key for key in keys if chance.random() < 0.5][:EVICTED]
        return f"{await redis.delete(*chosen) if chosen else 0} keys deleted"


async def _redis(company: Cast, *command: str) -> object:
    async with Redis.from_url(company.stack.cache_redis_url) as redis:
        answer: object = await redis.execute_command(*command)  # type: ignore[no-untyped-call]
        return answer


async def disturb_replicas(company: Cast, seed: int, told: list[str]) -> None:
    """For ever: one replica stands still for a while, the other applies everything late; then they change places."""
    chance = random.Random(seed)
    replicas = list(company.replicas)
    while True:
        chance.shuffle(replicas)
        late, still = replicas
        delay, seconds = chance.choice([200, 500, 800, 3000]), chance.uniform(1.0, 5.0)
        for replica, statements in (
            (late, (f"ALTER SYSTEM SET recovery_min_apply_delay = '{delay}ms'", "SELECT pg_reload_conf()")),
            (still, ("SELECT pg_wal_replay_pause()",)),
        ):
            await _execute(replica, statements)
        told.append(f"{late.name} applies {delay} ms late, {still.name} stands still for {seconds:.1f} s")
        try:
            await asyncio.sleep(seconds)
        finally:
            await _execute(still, ("SELECT pg_wal_replay_resume()",))
            await _execute(late, ("ALTER SYSTEM RESET recovery_min_apply_delay", "SELECT pg_reload_conf()"))
        await asyncio.sleep(chance.uniform(0.5, 2.0))


async def _execute(replica: PostgresServer, statements: Sequence[str]) -> None:
    connection = await replica.connect()
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


_DEEDS: Mapping[Fault, Callable[[Cast, Order], Awaitable[str]]] = {
    Fault.REDIS_KILL: _kill_redis,
    Fault.REDIS_PAUSE: _pause_redis,
    Fault.REDIS_FLUSH: _flush,
    Fault.EVICTION: _evict,
    Fault.PUBSUB_KILL: _kill_pubsub,
    Fault.LINE_DELAY: _delay,
    Fault.LINE_LAG: _lag,
    Fault.LINE_HOLE: _silence,
    Fault.LINE_CUT: _cut_line,
    Fault.GATEWAY_KILL: _kill_gateway,
    Fault.GATEWAY_PAUSE: _pause_gateway,
    Fault.EVENTS_KILL: _kill_search,
    Fault.EVENTS_HOLE: _silence_search,
}

"""Lists among a million tickets of one tenant, with eight clients; and two of them with their index and without.

At the level of `Database.read`, through the tickets service's own list function: a transaction within the tenant,
under row-level security, on the primary. Not in it: HTTP and the cache, which take a list's place most of the time.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

import asyncpg

from infra.local.stack import Stack
from libs.common import settings
from libs.common.consistency import Requirement
from libs.common.models import Priority, Status
from services.tickets import lists
from services.tickets.database import Database
from services.tickets.settings import DatabaseSettings
from services.tickets.store_lists import LISTS, Filter, Sort, Wanted
from tests.bench.figures import Figure
from tests.support.clients import Tenant
from tests.support.many_tickets import AGENTS, REQUESTERS, ManyTickets, fill

TICKETS = 1_000_000
CLIENTS = 8
LIMIT = 25
TARGET_MS = 50.0
# Lists whose index is taken away for the second figure, with what of the index else could serve them.
WITHOUT = {
    "tickets of an assignee": (
        Filter.ASSIGNEE,
        Sort.NEWEST,
        "idx_tickets_assigned_to, idx_tickets_assigned_to_updated_at",
    ),
    "tickets of a creator": (Filter.USER, Sort.NEWEST, "idx_tickets_user_id, idx_tickets_user_id_updated_at"),
}
_filled: dict[str, ManyTickets] = {}


async def measure(stack: Stack, tenants: Sequence[Tenant], seconds: float) -> list[Figure]:
    """The first call fills the first tenant, which takes minutes."""
    many = await _many_tickets(stack, tenants[0])
    environment = stack.environment("tickets") | {"TICKETS_REPLICA_URLS": "", "TICKETS_ANALYTICS_URL": ""}
    loaded = settings.load(DatabaseSettings, environment, prefix="TICKETS_")
    async with Database.open(loaded) as database:
        figures = [
            Figure(
                f"list {which} {sort}, 1 M tickets: P95",
                await _p95(database, many, which, sort, seconds / 5),
                TARGET_MS,
                "target",
                "ms",
            )
            for which, sort in LISTS
        ]
        for name, (which, sort, indexes) in WITHOUT.items():
            with_index = await _p95(database, many, which, sort, seconds / 4)

            async def run(which: Filter = which, sort: Sort = sort) -> float:
                return await _p95(database, many, which, sort, seconds / 4)

            without = await _without(stack, indexes, run)
            figures.append(
                Figure(f"list {name}, 1 M tickets: P95 with its index", with_index, without, "without", "ms")
            )
    return figures


async def _many_tickets(stack: Stack, tenant: Tenant) -> ManyTickets:
    url = stack.primary.url("tickets", superuser=True)
    if url not in _filled:
        async with asyncpg.create_pool(url, min_size=0, max_size=2) as pool:
            _filled[url] = await fill(pool, uuid.UUID(tenant.organization_id), TICKETS)
    return _filled[url]


async def _p95(database: Database, many: ManyTickets, which: Filter, sort: Sort, seconds: float) -> float:
    """Milliseconds of a page, the first or one that a cursor leads to, of somebody else each time.

    The first quarter is not counted: each connection prepares the statement and plans it some times for its values.
    """
    durations: list[float] = []
    counted_from = time.perf_counter() + seconds / 4
    deadline = time.monotonic() + seconds * 1.25

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < deadline:
            wanted, cursor = _wanted(many, which, sort, rng), None
            for _page in range(3):
                started = time.perf_counter()
                found = await lists.list_tickets(
                    database, many.organization_id, Requirement(), wanted, cursor=cursor, limit=LIMIT
                )
                if started >= counted_from:
                    durations.append((time.perf_counter() - started) * 1000)
                cursor = found.value.next_cursor
                if cursor is None:
                    break

    await asyncio.gather(*(client(seed) for seed in range(CLIENTS)))
    return sorted(durations)[int(len(durations) * 0.95)]


def _wanted(many: ManyTickets, which: Filter, sort: Sort, rng: random.Random) -> Wanted:
    statuses = frozenset(rng.sample(list(Status), rng.randint(1, 4)))
    some = frozenset(rng.sample(list(Priority), rng.randint(1, 3)))
    assignee = many.agent(rng.randrange(AGENTS)) if which in {Filter.ASSIGNEE, Filter.ASSIGNEE_USER} else None
    users = {Filter.USER, Filter.ASSIGNEE_USER, Filter.UNASSIGNED_USER}
    return Wanted(
        statuses=statuses if which is Filter.STATUS else frozenset(),
        priorities=some if which is Filter.PRIORITY else frozenset(),
        assigned_to=assignee,
        unassigned=which in {Filter.UNASSIGNED, Filter.UNASSIGNED_USER},
        user_id=many.requester(rng.randrange(REQUESTERS)) if which in users else None,
        sort=sort,
    )


async def _without(stack: Stack, indexes: str, run: Callable[[], Awaitable[float]]) -> float:
    """Run while indexes are hidden from the planner; dropping and building them again would take minutes."""
    names = [name.strip() for name in indexes.split(",")]
    hide = "UPDATE pg_index SET indisvalid = $2 WHERE indexrelid = ANY($1::text[]::regclass[])"
    connection = await asyncpg.connect(stack.primary.url("tickets", superuser=True))
    try:
        await connection.execute(hide, names, False)
        await connection.execute("ALTER TABLE tickets ALTER COLUMN number SET STATISTICS 100")  # plans are made anew
        return await run()
    finally:
        await connection.execute(hide, names, True)
        await connection.execute("ALTER TABLE tickets ALTER COLUMN number SET STATISTICS 101")
        await connection.close()

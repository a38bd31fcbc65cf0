"""The processes of a campaign against the cache, and the organizations that use them."""

import contextlib
import dataclasses
import hashlib
import secrets
import time
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import asyncpg

from infra.local.ports import HOST, free_ports
from infra.local.postgres import PostgresServer
from infra.local.stack import Stack
from libs.common.identity import Principal, Signer
from libs.common.kafka import ensure_topic
from libs.common.models import Role
from tests.chaos.cache_campaign.proxy import Proxies
from tests.chaos.cache_campaign.records import Through
from tests.support.processes import TestedService, running_service
from tests.support.stack import PARTITIONS
from tests.support.tickets import TicketsDatabase

GATEWAYS = 4
REPLICAS = 2
SEARCH = "search"
INSERT_KEY = """
INSERT INTO api_keys (organization_id, user_id, name, prefix, key_sha256) VALUES ($1, $2, 'campaign', 'rdk_', $3)"""
# What tells the gateways apart: two are as they come, one evicts all the time, in one everything expires soon.
SETTINGS: Sequence[dict[str, str]] = (
    {},
    {},
    {"GATEWAY_CACHE_L1_ITEMS": "10"},
    {"GATEWAY_CACHE_L1_SECONDS": "1", "GATEWAY_CACHE_L2_SECONDS": "3"},
)


@dataclasses.dataclass(frozen=True)
class User:
    """Somebody with an API key."""

    principal: Principal
    key: str

    @property
    def organization(self) -> str:
        return str(self.principal.organization_id)


class Gateway:
    """One gateway: `lives` counts its starts."""

    def __init__(self, number: int, process: TestedService) -> None:
        self.number = number
        self.process = process
        self.lives = 1

    @property
    def name(self) -> str:
        return f"gateway-{self.number}"

    @property
    def through(self) -> Through:
        return Through(self.number, self.lives)


@dataclasses.dataclass(frozen=True)
class Cast:
    """Servers of their own, a tickets and a search service, gateways and the lines between them and their Redis."""

    stack: Stack
    database: asyncpg.Pool
    tickets: TestedService
    search: TestedService
    gateways: list[Gateway]
    proxies: Proxies
    offices: list[list[User]]
    signer: Signer

    @property
    def replicas(self) -> list[PostgresServer]:
        found = [self.stack.parts[f"replica-{number}"] for number in range(1, REPLICAS + 1)]
        return [replica for replica in found if isinstance(replica, PostgresServer)]

    async def metrics(self, gateway: Gateway) -> dict[str, float]:
        """The samples of a gateway that have anything to do with caches or campaigns, by name and labels."""
        async with aiohttp.ClientSession() as http, http.get(f"{gateway.process.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        wanted = [line.rpartition(" ") for line in lines if line.startswith(("cache_", "campaign_"))]
        return {name: float(value) for name, _, value in wanted}


@contextlib.asynccontextmanager
async def cast(
    folder: Path, *, seed: int, plant: str = "", holds: float = 0.05, offices: int = 3
) -> AsyncIterator[Cast]:
    """Start everything in `folder`, which must be empty; it is removed at the end but for the logs."""
    stack = Stack(folder / "stack", services=(), replicas=REPLICAS)
    async with contextlib.AsyncExitStack() as ends:
        ends.callback(stack.remove)
        await ends.enter_async_context(stack)
        await ensure_topic(stack.kafka_bootstrap_servers, partitions=PARTITIONS, replication=1)
        lines = [SEARCH, *(f"gateway-{number}" for number in range(GATEWAYS))]
        target = urllib.parse.urlsplit(stack.cache_redis_url).port
        assert target is not None
        proxies = Proxies(dict(zip(lines, free_ports(len(lines)), strict=True)), target)
        await proxies.start()
        ends.push_async_callback(proxies.stop)

        def through(line: str) -> str:
            parsed = urllib.parse.urlsplit(stack.cache_redis_url)
            return parsed._replace(netloc=f":{parsed.password}@{HOST}:{proxies.ports[line]}").geturl()

        tickets = await ends.enter_async_context(
            running_service(stack, "tickets", folder / "tickets.log", TICKETS_TOPIC_PARTITIONS=str(PARTITIONS))
        )
        search = await ends.enter_async_context(
            running_service(
                stack,
                "search",
                folder / "search.log",
                SEARCH_TICKETS_URL=tickets.url,
                CACHE_REDIS_URL=through(SEARCH),
            )
        )
        gateways = []
        for number in range(GATEWAYS):
            settings = {
                "GATEWAY_TICKETS_URL": tickets.url,
                "GATEWAY_SEARCH_URL": search.url,
                "CACHE_REDIS_URL": through(f"gateway-{number}"),
                "CAMPAIGN_SEED": str(seed * GATEWAYS + number),
                "CAMPAIGN_HOLDS": str(holds),
                "CAMPAIGN_PLANT": plant,
                **SETTINGS[number],
            }
            script = ("-m", "tests.chaos.cache_campaign.faulty_gateway")
            log = folder / f"gateway-{number}.log"
            process = await ends.enter_async_context(running_service(stack, "gateway", log, script=script, **settings))
            gateways.append(Gateway(number, process))
        pool = await asyncpg.create_pool(stack.primary.url("tickets", superuser=True), min_size=0, max_size=4)
        ends.callback(pool.terminate)
        yield Cast(
            stack,
            pool,
            tickets,
            search,
            gateways,
            proxies,
            [await office(pool) for _ in range(offices)],
            Signer(stack.credentials.signing_key("gateway")),
        )


async def office(pool: asyncpg.Pool, roles: Sequence[Role] = (Role.ADMIN, Role.AGENT)) -> list[User]:
    """An organization whose users have an API key each."""
    users = []
    for principal in await TicketsDatabase("tickets", {}, pool).organization(*roles):
        key = f"rdk_{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(key.encode()).digest()
        await pool.execute(INSERT_KEY, principal.organization_id, principal.user_id, digest)
        users.append(User(principal, key))
    return users


def now() -> float:
    """The clock of all records."""
    return time.monotonic()

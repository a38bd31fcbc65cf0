"""Each service in turn is killed while tickets are written; nothing that was acknowledged is lost or doubled.

`make soak` runs this ten times over, by KILL_ROUNDS.
"""

import asyncio
import json
import os
from collections import defaultdict

import aiohttp
import asyncpg
import pytest

from infra.local.stack import Stack
from tests.support.clients import Tenant, client, headers_of, read_topic

TOPIC = "relaydesk.tickets.v1"
TICKETS = 200
WRITERS = 8
KILL_AT = TICKETS // 3
WAIT_SECONDS = 60
ROUNDS = int(os.environ.get("KILL_ROUNDS", "1"))

# Every document of an organization, by ticket.
DOCUMENTS = "SELECT ticket_id::text, version FROM documents WHERE organization_id = $1"


@pytest.mark.parametrize("round_number", range(1, ROUNDS + 1))
@pytest.mark.parametrize("service", ["gateway", "tickets", "notifier", "search"])
async def test_nothing_acknowledged_is_lost_when_a_service_is_killed(
    platform: Stack, tenant: Tenant, service: str, round_number: int
) -> None:
    acknowledged: dict[str, int] = {}
    enough = asyncio.Event()

    async def write(http: aiohttp.ClientSession, number: int) -> None:
        """Create tickets and change each once, going on through refusals until this writer's share is done."""
        written = 0
        while written < TICKETS // WRITERS:
            try:
                async with http.post(
                    "/api/tickets", json={"title": f"{service} {round_number}-{number}-{written}"}
                ) as answer:
                    if answer.status != 201:
                        assert answer.status == 503, await answer.text()
                        assert "Retry-After" in answer.headers
                        raise aiohttp.ClientError
                    ticket = await answer.json()
                written += 1
                acknowledged[ticket["id"]] = 1
                if len(acknowledged) >= KILL_AT:
                    enough.set()
                async with http.patch(
                    f"/api/tickets/{ticket['id']}", json={"status": "solved"}, headers={"If-Match": '"1"'}
                ) as answer:
                    if answer.status == 200:
                        acknowledged[ticket["id"]] = 2
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(0.05)  # the service is away: try again soon, as a client would

    async def kill_and_restart() -> None:
        await enough.wait()
        platform.kill(service)
        await platform.wait_until_dead(service)
        await platform.restart(service)

    async with client(platform, tenant) as http:
        async with asyncio.timeout(120):
            await asyncio.gather(kill_and_restart(), *(write(http, number) for number in range(WRITERS)))
    assert len(acknowledged) == TICKETS

    await _outbox_is_empty(platform)
    await _topic_has_every_version_in_order(platform, tenant, acknowledged)
    await _index_has_each_ticket_once(platform, tenant, acknowledged)


async def _outbox_is_empty(platform: Stack) -> None:
    connection = await asyncpg.connect(platform.primary.url("tickets", superuser=True))
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while await connection.fetchval("SELECT count(*) FROM outbox"):
                await asyncio.sleep(0.05)
    finally:
        await connection.close()


async def _topic_has_every_version_in_order(platform: Stack, tenant: Tenant, acknowledged: dict[str, int]) -> None:
    """Replays are legal; a version that first appears after a newer one, or is missing, is not."""
    versions: dict[str, list[int]] = defaultdict(list)
    for message in await read_topic(platform, TOPIC):
        headers = headers_of(message)
        if headers["ce_organizationid"] == tenant.organization_id:
            ticket_id = message.key.decode()
            version = int(headers["ce_ticketversion"])
            assert json.loads(message.value)["ticket"]["version"] == version
            if version not in versions[ticket_id]:
                versions[ticket_id].append(version)
    for ticket_id, version in acknowledged.items():
        found = versions[ticket_id]
        assert found == list(range(1, len(found) + 1)), f"{ticket_id} first appeared in the order {found}"
        assert len(found) >= version, f"{ticket_id} was acknowledged at version {version}, the topic has {found}"


async def _index_has_each_ticket_once(platform: Stack, tenant: Tenant, acknowledged: dict[str, int]) -> None:
    connection = await asyncpg.connect(platform.primary.url("search", superuser=True))
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                rows = await connection.fetch(DOCUMENTS, tenant.organization_id)
                found = {row["ticket_id"]: row["version"] for row in rows}
                if all(found.get(ticket_id, 0) >= version for ticket_id, version in acknowledged.items()):
                    break
                await asyncio.sleep(0.05)
        assert len(rows) == len(found)
    finally:
        await connection.close()

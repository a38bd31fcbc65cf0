"""The whole platform as its users meet it: organizations with API keys, HTTP, a socket, a foreign Kafka consumer."""

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import aiokafka

from infra.local.stack import Stack

HEADER = "Relaydesk-Consistency"


class Tenant:
    """An organization with its first user's password and API key."""

    def __init__(self, slug: str, provisioned: dict[str, Any]) -> None:
        self.slug = slug
        self.organization_id: str = provisioned["organization"]["id"]
        self.users: list[dict[str, str]] = provisioned["users"]
        self.key: str = provisioned["api_key"]["key"]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


async def provision(stack: Stack, slug: str | None = None, *, agents: int = 1) -> Tenant:
    """Create an organization as an operator would, by the tickets service's command."""
    slug = slug or f"org-{uuid.uuid4().hex[:10]}"
    users = [f"admin@{slug}.example:admin", *(f"agent{n}@{slug}.example:agent" for n in range(agents))]
    arguments = [argument for user in users for argument in ("--user", user)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.tickets", "provision"),
        *("--organization", slug, "--name", slug.title(), *arguments),
        env={**os.environ, **stack.environment("tickets")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return Tenant(slug, json.loads(out))


@asynccontextmanager
async def client(stack: Stack, tenant: Tenant | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """HTTP to the gateway, as the tenant's first user by API key."""
    async with aiohttp.ClientSession(
        stack.service_url("gateway"), headers=tenant.headers if tenant else None
    ) as session:
        yield session


@asynccontextmanager
async def foreign_consumer(stack: Stack, topic: str) -> AsyncIterator[aiokafka.AIOKafkaConsumer]:
    """A plain aiokafka consumer that knows nothing of our code and reads the topic from its beginning."""
    consumer = aiokafka.AIOKafkaConsumer(
        topic,
        bootstrap_servers=stack.kafka_bootstrap_servers,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        metadata_max_age_ms=1000,
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def read_topic(stack: Stack, topic: str) -> list[aiokafka.ConsumerRecord]:
    """Every message that is in the topic now, partition by partition, each in its order."""
    async with foreign_consumer(stack, topic) as consumer:
        partitions = consumer.assignment()
        ends = await consumer.end_offsets(partitions)
        found: list[aiokafka.ConsumerRecord] = []
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for batch in (await consumer.getmany(timeout_ms=200)).values():
                found.extend(batch)
        return found


def headers_of(message: aiokafka.ConsumerRecord) -> dict[str, str]:
    return {name: value.decode() for name, value in message.headers}

"""The real servers, started once a test session and only when a test asks for them."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.events import TOPIC
from libs.common.kafka import ensure_topic

PARTITIONS = 3


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Servers without services. A test that stops a server starts it again before it ends."""
    servers = Stack(tmp_path_factory.mktemp("stack") / "servers", services=(), replicas=2)
    try:
        async with servers:
            yield servers
    finally:
        servers.remove()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def topic(stack: Stack) -> str:
    """The name of the ticket topic, which exists."""
    await ensure_topic(stack.kafka_bootstrap_servers, partitions=PARTITIONS, replication=1)
    return TOPIC

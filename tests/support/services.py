"""Running services that many tests share, one process each a test session."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from infra.local.stack import Stack
from tests.support.processes import TestedService, running_service


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def notifier(stack: Stack, topic: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TestedService]:
    """A notifier process that admits the origin https://desk.example.com."""
    log = tmp_path_factory.mktemp("notifier") / "notifier.log"
    async with running_service(stack, "notifier", log, NOTIFIER_ALLOWED_ORIGINS="https://desk.example.com") as service:
        yield service

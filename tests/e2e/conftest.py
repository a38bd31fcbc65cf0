"""The whole platform, started once for the end-to-end tests."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from infra.local.stack import Stack
from tests.support.clients import Tenant, provision


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """All four services on real servers of their own."""
    whole = Stack(tmp_path_factory.mktemp("platform") / "the platform", replicas=1)
    try:
        async with whole:
            yield whole
    finally:
        whole.remove()


@pytest_asyncio.fixture(loop_scope="session")
async def tenant(platform: Stack) -> Tenant:
    return await provision(platform)

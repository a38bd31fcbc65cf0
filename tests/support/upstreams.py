"""Processes of tests/support/faulty_service.py, and an upstream that consists of them."""

import asyncio
import contextlib
import json
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from joserfc.jwk import OKPKey

from libs.common.identity import Principal, Signer
from libs.common.models import Role
from services.gateway.upstreams.instances import Bounds
from services.gateway.upstreams.upstream import Upstream, client_session

CHECKOUT = Path(__file__).parents[2]
PRINCIPAL = Principal(
    organization_id=uuid.uuid4(),
    user_id=uuid.uuid4(),
    name="Test",
    role=Role.ADMIN,
    credential="session",
    credential_id="1",
)


class FaultyService:
    """One process of it, at a port that stays its own over restarts."""

    def __init__(self) -> None:
        self.port = 0
        self.process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        arguments = (sys.executable, "-m", "tests.support.faulty_service", str(self.port))
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(*arguments, cwd=CHECKOUT, stdout=pipe)
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            self.port = int(await self.process.stdout.readline())

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def told(self) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/told") as answer:
            told: dict[str, Any] = await answer.json()
            return told

    async def asked(self, path: str) -> int:
        """How often a path was asked since the process started."""
        return int((await self.told())["asked"].get(path, 0))


@contextlib.asynccontextmanager
async def faulty_services(count: int) -> AsyncIterator[list[FaultyService]]:
    services = [FaultyService() for _ in range(count)]
    try:
        await asyncio.gather(*(service.start() for service in services))
        yield services
    finally:
        await asyncio.gather(*(service.kill() for service in services))


@contextlib.asynccontextmanager
async def upstream_of(
    *addresses: str, seconds: float = 10.0, watched: bool = True, **bounds: int
) -> AsyncIterator[Upstream]:
    """Called as the gateway calls a service; not `watched`: nobody probes the instances."""
    key = OKPKey.generate_key("Ed25519", {"kid": "gateway"}, private=True)
    signer = Signer(json.dumps(key.as_dict(private=True)))
    async with client_session() as http:
        upstream = Upstream("tickets", addresses, http, signer, seconds=seconds, bounds=Bounds(**bounds))
        async with upstream.watched() if watched else contextlib.nullcontext():
            yield upstream

"""The four services of Relaydesk as parts of a stack."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp

from infra.local.environment import neutral
from infra.local.part import Part, State
from infra.local.ports import HOST
from infra.local.process import Command, run

CHECKOUT = Path(__file__).resolve().parents[2]
WITH_DATABASE = ("tickets", "search")


class Service(Part):
    """One service: migrated first where it owns a database, ready when /readyz says so."""

    stop_patience = 20.0

    def __init__(
        self,
        name: str,
        port: int,
        port_variable: str,
        *,
        environment: Callable[[], dict[str, str]],
        log: Path,
    ) -> None:
        super().__init__(name, port, port_variable, log)
        self._environment = environment
        self._url = f"http://{HOST}:{port}"

    async def prepare(self) -> None:
        if self.name in WITH_DATABASE:
            self.report(State.PREPARING, "migrating")
            await run(self.command_line("migrate"), f"Migrating the database of {self.name}")

    def command(self) -> Command:
        return self.command_line("serve")

    def command_line(self, *arguments: str) -> Command:
        """`python -m services.<name> ...` with the service's environment."""
        return Command(
            argv=[sys.executable, "-m", f"services.{self.name}", *arguments],
            environment=neutral(os.environ) | self._environment() | {"PYTHONUNBUFFERED": "1"},
            folder=CHECKOUT,
            log=self.log,
        )

    async def is_ready(self) -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{self._url}/readyz") as answer:
            return answer.status == 200

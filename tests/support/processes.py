"""Services as processes of a test: started on a free port, stopped at the end, killed in between."""

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from infra.local.ports import HOST, free_ports
from infra.local.process import Command
from infra.local.services import Service
from infra.local.stack import Stack


class TestedService(Service):
    """`python -m services.<name> serve`, or with `script` a program of the tests that runs the service its own way."""

    __test__ = False
    script: tuple[str, ...] = ()
    url: str = ""

    def command(self) -> Command:
        command = super().command()
        return (
            Command(
                argv=[sys.executable, *self.script],
                environment=command.environment,
                folder=command.folder,
                log=command.log,
            )
            if self.script
            else command
        )


@contextlib.asynccontextmanager
async def running_service(
    stack: Stack, name: str, log: Path, *, script: tuple[str, ...] = (), **environment: str
) -> AsyncIterator[TestedService]:
    """A service on its own port against the servers of `stack`; extra settings are keyword arguments."""
    (port,) = free_ports(1)
    settings = stack.environment(name) | {f"{name.upper()}_HOST": HOST, f"{name.upper()}_PORT": str(port)} | environment
    service = TestedService(name, port, f"{name.upper()}_PORT", environment=lambda: settings, log=log)
    service.script = script
    service.url = f"http://{HOST}:{port}"
    await service.start()
    try:
        yield service
    finally:
        await service.stop()

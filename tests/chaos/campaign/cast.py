"""The processes of a campaign, and the line over which each is told what to do at its points."""

import asyncio
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from infra.local.ports import HOST, free_ports
from infra.local.process import Command
from infra.local.stack import Stack
from tests.chaos.campaign.points import PROCESSES
from tests.support.processes import TestedService
from tests.support.tickets import TicketsDatabase, tickets_database

PARTITIONS = 6
# The payload of every event as it was written, in the transaction that wrote it: what Kafka delivers is compared to it.
WITNESS = """
CREATE TABLE campaign_witness (
    event_id uuid NOT NULL, ticket_id uuid NOT NULL, version bigint NOT NULL, type text NOT NULL, digest bytea NOT NULL
);
CREATE FUNCTION campaign_witness() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO campaign_witness VALUES (NEW.event_id, NEW.ticket_id, NEW.version, NEW.type, sha256(NEW.data));
    RETURN NULL;
END
$$;
CREATE TRIGGER campaign_witness AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION campaign_witness()"""


class FaultyProcess(TestedService):
    """A tickets service or relay with points. The schema is there, so a new start does not look for migrations."""

    __test__ = False
    kind = "serve"

    async def prepare(self) -> None:
        pass

    def command(self) -> Command:
        return dataclasses.replace(
            super().command(), argv=[sys.executable, "-m", "tests.chaos.campaign.faulty_tickets", self.kind]
        )


class Lines:
    """The campaign's end of the lines to its processes, by name."""

    def __init__(self) -> None:
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._hits: dict[str, asyncio.Future[str]] = {}

    @contextlib.asynccontextmanager
    async def open(self, address: Path) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._connected, address)
        try:
            yield
        finally:
            server.close()
            for writer in self._writers.values():
                writer.close()

    def arm(self, process: str, point: str, deed: str, passes: int) -> "asyncio.Future[str]":
        """Order a deed; the future tells the point once it was reached."""
        hit = self._hits[process] = asyncio.get_running_loop().create_future()
        self._tell(process, f"arm {point} {deed} {passes}")
        return hit

    def disarm(self, process: str) -> None:
        self._hits.pop(process, None)
        self._tell(process, "disarm")

    def go(self, process: str) -> None:
        """Let a process that waits at a point go on."""
        self._tell(process, "go")

    def _tell(self, process: str, line: str) -> None:
        self._writers[process].write(f"{line}\n".encode())

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process = (await reader.readline()).decode().strip()
        self._writers[process] = writer
        with contextlib.suppress(ConnectionError):
            while line := (await reader.readline()).decode().split():
                hit = self._hits.pop(process, None)
                if hit is not None and not hit.done():
                    hit.set_result(line[1])


@dataclasses.dataclass(frozen=True)
class Cast:
    """Servers of their own, two tickets services (the first with a relay inside) and two relays."""

    stack: Stack
    database: TicketsDatabase
    processes: dict[str, FaultyProcess]
    lines: Lines


@contextlib.asynccontextmanager
async def cast(folder: Path) -> AsyncIterator[Cast]:
    """Start everything in `folder`, which must be empty; it is removed at the end but for the logs."""
    stack = Stack(folder / "stack", services=(), replicas=0)
    lines = Lines()
    async with contextlib.AsyncExitStack() as ends:
        ends.callback(stack.remove)
        await ends.enter_async_context(stack)
        database = await ends.enter_async_context(tickets_database(stack))
        await database.superuser.execute(WITNESS)
        # Not in `folder`: a socket's path is limited to 107 bytes.
        address = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="campaign-"))) / "lines"
        await ends.enter_async_context(lines.open(address))
        processes = {}
        for name, port in zip(PROCESSES, free_ports(len(PROCESSES)), strict=True):
            process = _process(name, port, database, address, folder / f"{name}.log")
            ends.push_async_callback(process.stop)
            processes[name] = process
        await asyncio.gather(*(process.start() for process in processes.values()))
        yield Cast(stack, database, processes, lines)


def _process(name: str, port: int, database: TicketsDatabase, address: Path, log: Path) -> FaultyProcess:
    environment = database.environment | {
        "TICKETS_HOST": HOST,
        "TICKETS_PORT": str(port),
        "TICKETS_TOPIC_PARTITIONS": str(PARTITIONS),
        "TICKETS_RELAY_EMBEDDED": "true" if name == "service-1" else "false",
        "LOG_LEVEL": "warning",
        "CAMPAIGN_SOCKET": str(address),
        "CAMPAIGN_PROCESS": name,
    }
    process = FaultyProcess("tickets", port, "TICKETS_PORT", environment=lambda: environment, log=log)
    process.kind = "serve" if name.startswith("service") else "relay"
    process.url = f"http://{HOST}:{port}"
    return process

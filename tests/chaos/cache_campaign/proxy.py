"""A line to Redis that can be slow, silent or cut: real sockets between a process and its server.

A process of its own, so that the load's event loop does not hold up what passes. It takes orders on its standard input,
one a line, and answers each with one line of JSON: how many pieces of data were held up so far, how many connections
were cut. `NAME pass`; `NAME delay SECONDS`; `NAME lag SECONDS`: only what comes over a connection that has subscribed,
later and later, as on a line that is full, so that there never is a silence; `NAME hole`: nothing passes, nothing ends,
and what waits passes when the hole ends; `NAME cut`: every connection ends, new ones pass.
"""

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence

import uvloop

from infra.local.ports import HOST

PIECE_BYTES = 65_536
LAG_SHARE = 0.7  # of the time since it began


class Line:
    """One listening port; everything that connects to it reaches `target`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._mode = "pass"
        self._seconds = 0.0
        self._since = 0.0
        self._changed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self.held = 0
        self.cut = 0

    async def serve(self, port: int) -> None:
        await asyncio.start_server(self._connected, HOST, port)

    def order(self, mode: str, seconds: float) -> None:
        if mode == "cut":
            self.cut += len(self._writers) // 2
            for writer in tuple(self._writers):
                writer.transport.abort()
            return
        self._mode, self._seconds = mode, seconds
        self._since = asyncio.get_running_loop().time()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, server_writer}
        self._writers |= both
        connection = _Connection(self)
        tasks = [
            asyncio.create_task(connection.carry(reader, server_writer, to_server=True)),
            asyncio.create_task(connection.carry(server_reader, writer, to_server=False)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for each in both:
            each.transport.abort()
        self._writers -= both

    async def due(self, arrived: float, *, slow: bool) -> None:
        """Wait until a piece of data that arrived then may pass."""
        counted = False
        while True:
            now = asyncio.get_running_loop().time()
            match self._mode:
                case "hole":
                    wait = None
                case "delay":
                    wait = max(0.0, arrived + self._seconds - now)
                case "lag" if slow:
                    behind = min(self._seconds, LAG_SHARE * max(0.0, arrived - self._since))
                    wait = max(0.0, arrived + behind - now)
                case _:
                    wait = 0.0
            if wait == 0.0:
                return
            if not counted:
                self.held += 1
                counted = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()


class _Connection:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._subscribed = False

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool) -> None:
        """Take as fast as it comes, pass on when it is due."""
        taken: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        async def take() -> None:
            while True:
                piece = await reader.read(PIECE_BYTES)
                if to_server and b"SUBSCRIBE" in piece:
                    self._subscribed = True
                taken.put_nowait((loop.time(), piece))
                if not piece:
                    return

        taking = asyncio.create_task(take())
        try:
            while True:
                arrived, piece = await taken.get()
                await self._line.due(arrived, slow=self._subscribed and not to_server)
                if not piece:
                    return
                writer.write(piece)
        finally:
            taking.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await taking


@dataclasses.dataclass
class Proxies:
    """The campaign's end: one process with a line for each name."""

    ports: Mapping[str, int]
    target: int
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        arguments = [str(self.target), *(f"{name}={port}" for name, port in self.ports.items())]
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.cache_campaign.proxy", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        await self.order(next(iter(self.ports)), "pass")

    async def order(self, name: str, mode: str, seconds: float = 0.0) -> dict[str, int]:
        """Give an order; the line's counts once it holds."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name} {mode} {seconds}\n".encode())
        async with asyncio.timeout(30):
            counts: dict[str, int] = json.loads(await self.process.stdout.readline())
        return counts

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


async def main(target: int, ports: Sequence[str]) -> None:
    lines: dict[str, Line] = {}
    for name, _, port in (text.partition("=") for text in ports):
        lines[name] = Line(target)
        await lines[name].serve(int(port))
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while order := (await orders.readline()).decode().split():
        line = lines[order[0]]
        line.order(order[1], float(order[2]))
        print(json.dumps({"held": line.held, "cut": line.cut}), flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2:]))

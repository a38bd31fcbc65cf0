"""The tickets service or its relay, which dies, freezes or waits at a named point when the campaign says so.

The functions of the product are wrapped here, from outside; a point that is not armed costs a look into a dictionary.
`python -m tests.chaos.campaign.faulty_tickets serve` and `… relay` take CAMPAIGN_SOCKET and CAMPAIGN_PROCESS from the
environment. Over the socket come lines `arm POINT DEED PASSES`, `disarm` and `go`; `hit POINT` is sent before the deed.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiokafka
import asyncpg

from libs.common import kafka
from libs.common.postgres import transaction_on
from services.tickets import __main__ as service
from services.tickets import database, store_relay


class Points:
    """What this process is to do at its points."""

    def __init__(self, address: str, name: str) -> None:
        self._armed: dict[str, tuple[str, int]] = {}
        self._going = threading.Event()
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(address)
        self._line.sendall(f"{name}\n".encode())
        threading.Thread(target=self._listen, daemon=True).start()

    async def reach(self, point: str) -> None:
        armed = self._armed.get(point)
        if armed is None:
            return
        deed, passes = armed
        if passes > 1:
            self._armed[point] = (deed, passes - 1)
            return
        self._armed.pop(point, None)
        self._going.clear()
        # What is in the socket's buffer outlives the process.
        self._line.sendall(f"hit {point}\n".encode())
        if deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "pause":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            await asyncio.to_thread(self._going.wait)

    def _listen(self) -> None:
        with self._line.makefile() as lines:
            for line in lines:
                match line.split():
                    case ["arm", point, deed, passes]:
                        self._armed[point] = (deed, int(passes))
                    case ["disarm"]:
                        self._armed.clear()
                    case ["go"]:
                        self._going.set()
        self._going.set()


def wrap(points: Points) -> None:
    """Put the points into the write path. Raises AttributeError for a function that is not there any more."""
    select_rows, delete_rows = store_relay.select_rows, store_relay.delete_rows
    producer = kafka.producer

    @contextlib.asynccontextmanager
    async def transaction_with_points(
        connection: asyncpg.Connection, *, organization_id: uuid.UUID | None, read_only: bool = False
    ) -> AsyncIterator[None]:
        async with transaction_on(connection, organization_id=organization_id, read_only=read_only):
            yield
            if not read_only:
                await points.reach("before_commit")
        if not read_only:
            await points.reach("after_commit")

    async def select_and_reach(*arguments: Any) -> list[asyncpg.Record]:
        rows = await select_rows(*arguments)
        if rows:
            await points.reach("before_send")
        return rows

    async def reach_and_delete(*arguments: Any) -> None:
        await points.reach("after_acknowledge")
        await delete_rows(*arguments)
        await points.reach("after_delete")

    def producer_with_points(*arguments: Any, **more: Any) -> aiokafka.AIOKafkaProducer:
        made = producer(*arguments, **more)
        send = made.send

        async def send_and_reach(*arguments: Any, **more: Any) -> Any:
            sent = await send(*arguments, **more)
            await points.reach("after_send")
            return sent

        made.send = send_and_reach
        return made

    for module, name, function in (
        (database, "transaction_on", transaction_with_points),
        (store_relay, "select_rows", select_and_reach),
        (store_relay, "delete_rows", reach_and_delete),
        (kafka, "producer", producer_with_points),
    ):
        getattr(module, name)
        setattr(module, name, function)


if __name__ == "__main__":
    wrap(Points(os.environ.pop("CAMPAIGN_SOCKET"), os.environ.pop("CAMPAIGN_PROCESS")))
    service.commands(sys.argv[1:])

"""Sends encoded tickets through POST /api/tickets/bulk: batches, in parallel, again after an outage."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from cli.client import Api, Patience, bulk_body
from libs.common.models import BODY_BYTES, BulkResult

ENVELOPE_BYTES = len(bulk_body(()))
ROWS_BETWEEN_PAUSES = 500


class EncodedTicket(msgspec.Struct, frozen=True, gc=False):
    """A `NewTicket` as JSON; `line` is where it stands in the source."""

    line: int
    body: bytes


Batch = list[EncodedTicket]


def batches(tickets: Iterable[EncodedTicket | None], rows: int) -> Iterator[Batch]:
    """Group tickets so that no request has more than `rows` tickets or more than 1 MB.

    `None` stands for a row that gives no ticket. An empty batch comes after many of these, so that whoever
    iterates gets a turn.
    """
    batch: Batch = []
    size = ENVELOPE_BYTES
    idle = 0
    for ticket in tickets:
        if ticket is None:
            idle += 1
            if idle % ROWS_BETWEEN_PAUSES == 0:
                yield []
            continue
        length = len(ticket.body) + 1  # with its comma
        if batch and (len(batch) >= rows or size + length > BODY_BYTES):
            yield batch
            batch, size = [], ENVELOPE_BYTES
        batch.append(ticket)
        size += length
    if batch:
        yield batch


class Sender:
    """Keeps up to `parallel` requests under way; `on_result` hears of every ticket once."""

    def __init__(
        self, api: Api, patience: Patience, parallel: int, on_result: Callable[[EncodedTicket, BulkResult], None]
    ) -> None:
        self._api = api
        self._patience = patience
        self._parallel = parallel
        self._on_result = on_result
        self._under_way: dict[asyncio.Task[list[BulkResult]], Batch] = {}
        self._last_line = 0

    def done_through(self) -> int:
        """The source up to this line (inclusive) has been answered for."""
        firsts = [batch[0].line for batch in self._under_way.values()]
        return min(firsts) - 1 if firsts else self._last_line

    async def run(self, source: Iterable[Batch], on_turn: Callable[[], None]) -> None:
        """Send everything. `on_turn` is called between batches.

        Raises:
            CommandError: the first that a request ends with; the other requests are abandoned, and may or may
                not have been carried out.
        """
        try:
            for batch in source:
                if batch:
                    while len(self._under_way) >= self._parallel:
                        await self._settle()
                    request = asyncio.create_task(self._send(batch))
                    self._under_way[request] = batch
                    self._last_line = batch[-1].line
                on_turn()
                await asyncio.sleep(0)
            while self._under_way:
                await self._settle()
                on_turn()
        finally:
            for request in self._under_way:
                request.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _send(self, batch: Batch) -> list[BulkResult]:
        bodies: Sequence[bytes] = [ticket.body for ticket in batch]
        return await self._patience.run(lambda: self._api.bulk(bodies))

    async def _settle(self) -> None:
        """Take in what has been answered, waiting for at least one."""
        finished, _ = await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        for request in finished:
            results = request.result()
            for ticket, result in zip(self._under_way.pop(request), results, strict=True):
                self._on_result(ticket, result)

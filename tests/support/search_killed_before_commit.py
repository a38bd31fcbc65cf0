"""The search service, which dies by SIGKILL between a batch's effect and the commit of its offsets."""

import os
import signal
from collections.abc import Sequence

from libs.common.events import TicketEvent
from services.search import __main__ as service
from services.search.consumers import IndexConsumer

apply = IndexConsumer.apply


async def apply_and_die(self: IndexConsumer, events: Sequence[TicketEvent]) -> None:
    await apply(self, events)
    os.kill(os.getpid(), signal.SIGKILL)


IndexConsumer.apply = apply_and_die  # type: ignore[method-assign]
service.commands(["serve"])

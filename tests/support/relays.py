"""Tickets for a relay to publish, and what is to be seen of its work."""

import uuid
from collections.abc import Sequence

import msgspec

from libs.common.identity import Principal
from libs.common.models import BulkCreate, BulkReport, NewComment, TicketChanges
from services.tickets.bulk import create_tickets
from services.tickets.comments import add_comment
from services.tickets.database import Database
from services.tickets.tickets import update_ticket
from tests.support.tickets import RelayProcess, TicketsDatabase, first_times, gauge

SHARDS = 64.0  # of all relays together


async def new_tickets(database: Database, principal: Principal, count: int) -> list[str]:
    """Create tickets; their ids."""
    rows = [msgspec.Raw(msgspec.json.encode({"title": f"Ticket {n}"})) for n in range(count)]
    made: list[str] = []
    for start in range(0, count, 500):
        reply, _position = await create_tickets(database, principal, BulkCreate(rows[start : start + 500]))
        made += [str(result.id) for result in msgspec.json.decode(reply.body, type=BulkReport).results]
    return made


async def write_versions(database: Database, principal: Principal, ticket_id: str, versions: Sequence[int]) -> None:
    """Comments and changes that make these versions; safe beside other writers of other tickets."""
    key = uuid.UUID(ticket_id)
    for version in versions:
        if version % 3 == 0:
            await add_comment(database, principal, key, NewComment(f"{version}"))
        else:
            changes = TicketChanges(title=f"Version {version}")
            await update_ticket(database, principal, key, changes, expected_version=version - 1)


async def drained(outbox: TicketsDatabase) -> bool:
    """Whether no event waits for the relay."""
    return await rows_in(outbox) == 0


async def rows_in(outbox: TicketsDatabase) -> int:
    """How many events wait for the relay."""
    return int(await outbox.superuser.fetchval("SELECT count(*) FROM outbox"))


def owns(relay: RelayProcess, shards: float) -> object:
    """A condition to wait for: the relay has so many shards."""

    async def condition() -> bool:
        return await gauge(relay, "relay_shards_owned") == shards

    return condition


def assert_complete(versions: dict[str, list[int]], last: int) -> None:
    """Every version arrived, and for the first time in its turn; replays do not count."""
    for ticket_id, found in versions.items():
        assert first_times(found) == list(range(1, last + 1)), ticket_id

"""What a campaign leaves behind: the rows of the database and the messages of the topic."""

import hashlib

import asyncpg
import msgspec

from infra.local.stack import Stack
from libs.common.events import TOPIC
from tests.chaos.campaign.checker import Delivery, Event, Evidence, Line
from tests.chaos.campaign.writers import Records
from tests.support.clients import foreign_consumer, headers_of

WRITTEN = "SELECT ticket_id::text, version, event_id::text, type, digest FROM campaign_witness"
HISTORY = "SELECT ticket_id::text AS ticket_id, version, event_id::text AS event_id, type, changes FROM ticket_history"
TICKETS = "SELECT id::text AS id, title, version FROM tickets"
# A ticket that was never renamed has the title of its creation; of the others the first change tells it.
FIRST_TITLES = """
SELECT DISTINCT ON (t.id) t.id::text AS id, coalesce(h.changes -> 'title' ->> 0, t.title) AS title
FROM tickets t LEFT JOIN ticket_history h
    ON h.organization_id = t.organization_id AND h.ticket_id = t.id AND h.changes ? 'title'
ORDER BY t.id, h.version"""
COMMENTS = "SELECT body FROM comments"


async def gather(stack: Stack, database: asyncpg.Pool, records: Records) -> Evidence:
    """Everything, once the outbox is empty."""
    tickets = await database.fetch(TICKETS)
    return Evidence(
        creations=records.creations,
        updates=records.updates,
        written=[Event(*row) for row in await database.fetch(WRITTEN)],
        history=[
            Line(row["ticket_id"], row["version"], row["event_id"], row["type"], msgspec.json.decode(row["changes"]))
            for row in await database.fetch(HISTORY)
        ],
        delivered=await delivered(stack),
        first_titles={row["id"]: row["title"] for row in await database.fetch(FIRST_TITLES)},
        titles={row["id"]: row["title"] for row in tickets},
        versions={row["id"]: row["version"] for row in tickets},
        comments=[row["body"] for row in await database.fetch(COMMENTS)],
    )


async def delivered(stack: Stack) -> list[Delivery]:
    """The whole topic, read as any subscriber would; values are kept as digests."""
    found: list[Delivery] = []
    async with foreign_consumer(stack, TOPIC) as consumer:
        partitions = consumer.assignment()
        ends = await consumer.end_offsets(partitions)
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for batch in (await consumer.getmany(timeout_ms=200)).values():
                for message in batch:
                    headers = headers_of(message)
                    event = Event(
                        (message.key or b"").decode(),
                        int(headers["ce_ticketversion"]),
                        headers["ce_id"],
                        headers["ce_type"],
                        hashlib.sha256(message.value or b"").digest(),
                    )
                    found.append(Delivery(event, message.partition))
    return found

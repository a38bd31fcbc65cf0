"""Documents: events become the state of the index.

A document is a function of its ticket's version, so applying events is idempotent: what is stored already is
skipped, the next version is applied, and where versions are missing the whole ticket is fetched from its owner.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import asyncpg
import msgspec
import structlog
from prometheus_client import Counter, Histogram

from libs.common.cache.search_tags import Change
from libs.common.events import TicketEvent
from libs.common.kafka import EventsRejected
from libs.common.models import TITLE_LENGTH, Ticket, TicketDocument
from libs.common.problems import Problem
from services.search import store
from services.search.store import Document, Key, Stored
from services.search.texts import appended, capped, storable
from services.search.tickets_client import TicketsClient

APPLIED = Counter("search_documents_applied_total", "Events and what became of them in the index.", ["outcome"])
GAPS = Counter("search_version_gaps_total", "Tickets that were fetched because events of theirs were missing.")
DELAY = Histogram(
    "search_indexing_delay_seconds",
    "Time from a change's commit to its being searchable, in seconds.",
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
_REFETCHES_AT_ONCE = 8

# What PostgreSQL says of a document that it can never store.
_UNSTORABLE = (
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.IntegrityConstraintViolationError,
)

# What an event does to the text of its ticket's comments.
Handler = Callable[[str, TicketEvent], str]
log = structlog.get_logger()


def on_ticket_changed(comments: str, _event: TicketEvent) -> str:
    """The ticket in the event is the whole of the news."""
    return comments


def on_ticket_commented(comments: str, event: TicketEvent) -> str:
    """Append the comment.

    Raises:
        EventsRejected: for an event without one.
    """
    if event.data.comment is None:
        raise EventsRejected((event, "the event holds no comment"))
    return appended(comments, event.data.comment.body)


class Folded(msgspec.Struct):
    """What a batch comes to.

    `gaps` are tickets to fetch, each with the events it must include; `last` holds the last event of every changed
    ticket.
    """

    documents: dict[Key, Document] = {}
    gaps: dict[Key, list[TicketEvent]] = {}
    last: dict[Key, TicketEvent] = {}
    applied: list[TicketEvent] = []
    skipped: list[TicketEvent] = []


class Applied(NamedTuple):
    """What a batch has changed in the index.

    `untold` are the organizations of changes that the index had already: by this consumer, whose bump may have failed
    then, or by another, which may be gone before its own.
    """

    changes: Sequence[Change]
    untold: set[uuid.UUID]


def fold(stored: Mapping[Key, Stored], events: Sequence[TicketEvent], handlers: Mapping[str, Handler]) -> Folded:
    """Fold `events` in their order over what is stored.

    Raises:
        EventsRejected: for an event without what its type promises.
    """
    state = dict(stored)
    folded = Folded()
    for event in events:
        key = _key_of(event)
        version, comments = state.get(key, Stored(0, ""))
        if event.version <= version:
            folded.skipped.append(event)
            continue
        folded.last[key] = event
        folded.applied.append(event)
        if key in folded.gaps or event.version != version + 1:
            folded.gaps.setdefault(key, []).append(event)
            folded.documents.pop(key, None)
            continue
        comments = handlers[event.type](comments, event)
        state[key] = Stored(event.version, comments)
        folded.documents[key] = Document(_prepared(event.data.ticket), comments)
    return folded


class Documents:
    """The index as the consumer sees it; `pool` acts as the role search_indexer."""

    def __init__(self, pool: asyncpg.Pool, tickets: TicketsClient) -> None:
        self._pool = pool
        self._tickets = tickets

    async def apply(self, events: Sequence[TicketEvent], handlers: Mapping[str, Handler]) -> Applied:
        """Apply a batch: read what is stored, fold, fetch what is missing, store in one transaction.

        Between reading and storing another process may store as well: a document depends on its version alone and
        an older one never replaces a newer, so the result is the same.

        Raises:
            EventsRejected: for events that can never be applied; the others may or may not be applied then.
            Problem, OSError, asyncpg.PostgresError: when something is not there; try the batch again.
        """
        stored = await store.select_stored(self._pool, {_key_of(event) for event in events})
        folded = fold(stored, events, handlers)
        documents = folded.documents | await self._refetch(folded.gaps)
        changes = await self._store(documents, folded.last)
        now = time.time()
        for event in folded.applied:
            DELAY.observe(max(0.0, now - event.time.timestamp()))
        APPLIED.labels("applied").inc(len(folded.documents))
        APPLIED.labels("refetched").inc(len(folded.gaps))
        APPLIED.labels("skipped").inc(len(folded.skipped))
        GAPS.inc(len(folded.gaps))
        stored_by_others = documents.keys() - {(change.organization_id, change.ticket_id) for change in changes}
        untold = {event.organization_id for event in folded.skipped} | {key[0] for key in stored_by_others}
        return Applied(changes, untold)

    async def _refetch(self, gaps: Mapping[Key, Sequence[TicketEvent]]) -> dict[Key, Document]:
        turns = asyncio.Semaphore(_REFETCHES_AT_ONCE)

        async def refetch(events: Sequence[TicketEvent]) -> Document | None:
            async with turns:
                return await self._refetch_one(max(events, key=lambda event: event.version))

        results = await asyncio.gather(*map(refetch, gaps.values()), return_exceptions=True)
        documents: dict[Key, Document] = {}
        lost: list[tuple[TicketEvent, str]] = []
        for (key, events), result in zip(gaps.items(), results, strict=True):
            if isinstance(result, BaseException):
                raise result
            if result is None:
                lost += [(event, "versions are missing and the ticket does not exist") for event in events]
            else:
                documents[key] = result
        if lost:
            raise EventsRejected(*lost)
        return documents

    async def _refetch_one(self, event: TicketEvent) -> Document | None:
        """The document as its owner has it now; None when there is no such ticket."""
        log.info("version_gap", ticket_id=str(event.data.ticket.id), version=event.version)
        try:
            fetched = await self._tickets.refetch(event.organization_id, event.data.ticket.id)
        except Problem as problem:
            if problem.code == "ticket_not_found":
                return None
            raise
        if fetched.ticket.version < event.version:
            raise RuntimeError(
                f"ticket {fetched.ticket.id} was fetched in version {fetched.ticket.version}, "
                f"its event has {event.version}"
            )
        return document_of(fetched)

    async def _store(self, documents: Mapping[Key, Document], last: Mapping[Key, TicketEvent]) -> list[Change]:
        if not documents:
            return []
        try:
            return await store.upsert_documents(self._pool, documents.values())
        except _UNSTORABLE:
            changes: list[Change] = []
            unstorable: list[tuple[TicketEvent, str]] = []
            for key, document in documents.items():
                try:
                    changes += await store.upsert_documents(self._pool, [document])
                except _UNSTORABLE as error:
                    unstorable.append((last[key], f"the document cannot be stored: {error}"))
            if unstorable:
                raise EventsRejected(*unstorable) from None
            return changes


def document_of(fetched: TicketDocument) -> Document:
    """The document of a ticket fetched with its comments; the same as its events give."""
    comments = ""
    for comment in fetched.comments:
        comments = appended(comments, comment.body)
    return Document(_prepared(fetched.ticket), comments)


def _prepared(ticket: Ticket) -> Ticket:
    return msgspec.structs.replace(
        ticket,
        title=storable(ticket.title)[:TITLE_LENGTH],
        description=capped(ticket.description),
        external_id=None if ticket.external_id is None else storable(ticket.external_id),
        fields={storable(name): storable(value) for name, value in ticket.fields.items()},
    )


def _key_of(event: TicketEvent) -> Key:
    ticket = event.data.ticket
    return ticket.organization_id, ticket.id

import random
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.events import TicketEvent
from libs.common.kafka import EventsRejected
from services.search.consumers import INDEX_HANDLERS
from services.search.documents import document_of, fold
from services.search.store import Document, Key, Stored
from tests.support.indexing import changed, commented, created, document_after

ORGANIZATION = uuid.uuid4()


def life(kinds: list[bool]) -> list[TicketEvent]:
    """A ticket's events: its creation, then a comment (True) or another title (False) each."""
    events = [created(ORGANIZATION)]
    for number, is_comment in enumerate(kinds):
        before = events[-1]
        events.append(commented(before, f"comment {number}") if is_comment else changed(before, title=f"t{number}"))
    return events


class Index:
    """What `Documents.apply` does with `fold`, in memory: stores what it comes to and fetches what is missing."""

    def __init__(self, source: dict[Key, Document]) -> None:
        self.documents: dict[Key, Document] = {}
        self.fetched = 0
        self._source = source

    def apply(self, events: list[TicketEvent]) -> None:
        stored = {key: Stored(d.ticket.version, d.comments) for key, d in self.documents.items()}
        folded = fold(stored, events, INDEX_HANDLERS)
        assert not folded.documents.keys() & folded.gaps.keys()
        self.documents |= folded.documents
        for key, missed in folded.gaps.items():
            assert all(self._source[key].ticket.version >= event.version for event in missed)
            self.documents[key] = self._source[key]
            self.fetched += 1


@given(
    st.lists(st.lists(st.booleans(), max_size=6), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
    st.integers(1, 6),
)
def test_any_order_with_duplicates_gives_the_same_documents(
    kinds: list[list[bool]], order: random.Random, batch: int
) -> None:
    lives = [life(each) for each in kinds]
    source = {d.key: d for d in (document_of(document_after(events)) for events in lives)}
    delivered = [event for events in lives for event in events]
    delivered += order.choices(delivered, k=len(delivered))
    order.shuffle(delivered)
    index = Index(source)
    for start in range(0, len(delivered), batch):
        index.apply(delivered[start : start + batch])
    assert index.documents == source


@given(st.lists(st.booleans(), max_size=8), st.integers(1, 9), st.integers(1, 3))
def test_events_in_order_need_no_fetch_and_give_what_a_fetch_gives(
    kinds: list[bool], batch: int, deliveries: int
) -> None:
    events = life(kinds)
    delivered = [event for event in events for _ in range(deliveries)]
    index = Index({})
    for start in range(0, len(delivered), batch):
        index.apply(delivered[start : start + batch])
    assert index.fetched == 0
    assert list(index.documents.values()) == [document_of(document_after(events))]


def test_a_gap_holds_every_event_that_the_ticket_must_include() -> None:
    events = life([False] * 5)
    folded = fold({}, [events[0], events[4], events[2]], INDEX_HANDLERS)
    assert list(folded.gaps.values()) == [[events[4], events[2]]]
    folded = fold({}, [events[2], events[4]], INDEX_HANDLERS)
    assert list(folded.gaps.values()) == [[events[2], events[4]]]
    assert not folded.documents


def test_a_comment_event_without_a_comment_is_rejected() -> None:
    first = created(ORGANIZATION)
    event = commented(first, "x")
    empty = msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, comment=None))
    with pytest.raises(EventsRejected, match="no comment"):
        fold({}, [first, empty], INDEX_HANDLERS)

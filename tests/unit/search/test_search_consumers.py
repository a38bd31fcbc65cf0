import uuid

import msgspec

from libs.common.cache.ticket_tags import FACETS
from libs.common.consistency import Position
from libs.common.events import EventTypes
from services.search.consumers import (
    INDEX_HANDLERS,
    INVALIDATE_HANDLERS,
    by_organization,
)
from tests.support.indexing import changed, created


def test_every_declared_event_type_is_handled() -> None:
    assert INDEX_HANDLERS.keys() == INVALIDATE_HANDLERS.keys() == EventTypes.ALL.keys()


def test_what_an_organization_has_written_is_bumped_at_once_at_its_highest_position() -> None:
    organization, another = uuid.uuid4(), uuid.uuid4()
    one, other, foreign = created(organization), created(organization), created(another)
    late = msgspec.structs.replace(changed(one), position=Position(2, 5))
    early = msgspec.structs.replace(other, position=Position(1, 99))
    tags = by_organization([one, late, foreign, early], lambda event: INVALIDATE_HANDLERS[event.type](event))
    everything = f"org:{organization}:tickets"
    facets = [f"{everything}:{name}" for name in ["created", *late.data.changed] if name in FACETS]
    assert [(sorted(found), position) for found, position in tags] == [
        (
            sorted([everything, *facets, f"ticket:{one.data.ticket.id}", f"ticket:{other.data.ticket.id}"]),
            Position(2, 5),
        ),
        (
            sorted([f"org:{another}:tickets", f"org:{another}:tickets:created", f"ticket:{foreign.data.ticket.id}"]),
            foreign.position,
        ),
    ]

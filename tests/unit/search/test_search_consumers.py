import uuid

import msgspec

from libs.common.consistency import Position
from libs.common.events import EventTypes
from services.search.consumers import (
    INDEX_HANDLERS,
    INVALIDATE_HANDLERS,
    highest_positions,
    on_ticket_written,
)
from tests.support.indexing import changed, created


def test_every_declared_event_type_is_handled() -> None:
    assert INDEX_HANDLERS.keys() == INVALIDATE_HANDLERS.keys() == EventTypes.ALL.keys()


def test_a_tag_gets_the_highest_position_of_its_own_events() -> None:
    organization = uuid.uuid4()
    one, other = created(organization), created(organization)
    late = msgspec.structs.replace(changed(one), position=Position(2, 5))
    early = msgspec.structs.replace(other, position=Position(1, 99))
    tags = highest_positions([one, late, early], on_ticket_written)
    assert tags == {
        Position(2, 5): [f"ticket:{one.data.ticket.id}", f"org:{organization}:tickets"],
        Position(1, 99): [f"ticket:{other.data.ticket.id}"],
    }

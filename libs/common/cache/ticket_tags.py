"""The tags of tickets: what a write makes old, and what an answer depends on.

Both sides stand here because they must agree. A write bumps its ticket, the organization's `tickets_tag` and the facets
that it changed. A list in the order of creation shows other tickets only when one is created or changes in what the
list filters by; its own tickets are its parts. A list in the order of changes is another after every write.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

CREATED: Final = "created"
# The fields by which lists are filtered and that may change.
FILTERED: Final = frozenset({"status", "priority", "assigned_to"})
FACETS: Final = frozenset({CREATED, *FILTERED})
_ORDERS_OF_CREATION = frozenset({"created_at", "-created_at"})


class Dependence(NamedTuple):
    """What an answer depends on: `tags` and `watched` as in `libs.common.cache.loads.Question`."""

    tags: Sequence[str]
    watched: Sequence[str]


def organization_tag(organization_id: object) -> str:
    """Everything of an organization."""
    return f"org:{organization_id}"


def ticket_tag(ticket_id: object) -> str:
    return f"ticket:{ticket_id}"


def tickets_tag(organization_id: object) -> str:
    """Every write to a ticket of an organization."""
    return f"org:{organization_id}:tickets"


def written(organization_id: object, ticket_ids: Iterable[object], facets: Iterable[str]) -> list[str]:
    """What is to be bumped in one call after a write; `facets` that are none are left out."""
    changed = sorted(FACETS.intersection(facets))
    return [
        tickets_tag(organization_id),
        *(_facet_tag(organization_id, facet) for facet in changed),
        *map(ticket_tag, ticket_ids),
    ]


def lists(organization_id: object) -> list[str]:
    """What to clear so that no list of an organization is left."""
    return [tickets_tag(organization_id), _facet_tag(organization_id, CREATED)]


def of_list(organization_id: object, query: Mapping[str, str]) -> Dependence:
    """What the list of a query depends on; in the order of creation each of its tickets is a part."""
    every_write = [tickets_tag(organization_id)]
    if query.get("sort", "-created_at") not in _ORDERS_OF_CREATION:
        return Dependence(every_write, ())
    facets = [CREATED, *sorted(FILTERED.intersection(query))]
    return Dependence([_facet_tag(organization_id, facet) for facet in facets], every_write)


def _facet_tag(organization_id: object, facet: str) -> str:
    return f"{tickets_tag(organization_id)}:{facet}"

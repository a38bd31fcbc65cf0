"""Whatever a write changes on a page of a list, it bumps a tag that the page depends on."""

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from libs.common.cache.ticket_tags import CREATED, FACETS, lists, of_list, ticket_tag, tickets_tag, written

ORGANIZATION = "acme"
FIELDS: dict[str, list[Any]] = {
    "title": ["a", "b"],
    "status": ["open", "closed"],
    "priority": ["low", "high"],
    "assigned_to": ["ada", None],
}
FILTERS = {
    "status": ["open", "closed,open"],
    "priority": ["high"],
    "assigned_to": ["ada", "none"],
    "user_id": ["ada", "bob"],
}
PAGE = 1


class Ticket(msgspec.Struct, frozen=True):
    id: int
    title: str
    status: str
    priority: str
    assigned_to: str | None
    user_id: str
    version: int = 1
    updated_at: int = 0


def page_of(tickets: list[Ticket], query: dict[str, str]) -> tuple[tuple[Ticket, ...], bool]:
    """A page of tickets, and whether there are more; the cursor is the place after which the page begins."""
    sort = query.get("sort", "-created_at")
    descending, column = sort.startswith("-"), sort.removeprefix("-")

    def place(ticket: Ticket) -> tuple[int, int]:
        at = ticket.id if column == "created_at" else ticket.updated_at
        return (-at, -ticket.id) if descending else (at, ticket.id)

    def is_wanted(ticket: Ticket) -> bool:
        return all(
            (
                "status" not in query or ticket.status in query["status"].split(","),
                "priority" not in query or ticket.priority in query["priority"].split(","),
                "assigned_to" not in query or (ticket.assigned_to or "none") == query["assigned_to"],
                "user_id" not in query or ticket.user_id == query["user_id"],
            )
        )

    found = sorted((ticket for ticket in tickets if is_wanted(ticket)), key=place)
    if "cursor" in query:
        at = -int(query["cursor"]) if descending else int(query["cursor"])
        found = [ticket for ticket in found if place(ticket)[0] > at]
    return tuple(found[:PAGE]), len(found) > PAGE


def queries() -> Iterator[dict[str, str]]:
    """Every order, from the start and from a place, with none, one or two filters."""
    filters: list[dict[str, str]] = [
        dict(zip(names, values, strict=True))
        for count in range(3)
        for names in itertools.combinations(FILTERS, count)
        for values in itertools.product(*(FILTERS[name] for name in names))
    ]
    for sort in ["created_at", "-created_at", "updated_at", "-updated_at"]:
        for cursor in [{}, {"cursor": "0"}, {"cursor": "1"}]:
            yield from ({"sort": sort, **cursor, **found} for found in filters)


def desks() -> Iterator[list[Ticket]]:
    """Two tickets in every state, but for the title."""
    states = list(itertools.product(FIELDS["status"], FIELDS["priority"], FIELDS["assigned_to"]))
    for ada, bob in itertools.product(states, states):
        yield [Ticket(0, "a", *ada, "ada"), Ticket(1, "a", *bob, "bob")]


def writes(tickets: list[Ticket]) -> Iterator[tuple[list[Ticket], list[str]]]:
    """Every creation, change of a field and comment: the tickets after it, and what is bumped."""
    for state in itertools.product(*FIELDS.values()):
        title, status, priority, assignee = state
        new = Ticket(2, title, status, priority, assignee, "ada", updated_at=2)
        yield [*tickets, new], written(ORGANIZATION, [], [CREATED])
    for place, old in enumerate(tickets):
        later = msgspec.structs.replace(old, version=2, updated_at=2)
        for name, values in FIELDS.items():
            other = next(value for value in values if value != getattr(old, name))
            changed = msgspec.structs.replace(later, **{name: other})
            yield [*tickets[:place], changed, *tickets[place + 1 :]], written(ORGANIZATION, [old.id], [name])
        yield [*tickets[:place], later, *tickets[place + 1 :]], written(ORGANIZATION, [old.id], [])


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "updated_at", "-updated_at"])
def test_a_page_that_a_write_changes_is_made_old(sort: str) -> None:
    of_sort = [query for query in queries() if query["sort"] == sort]
    changed = 0
    for tickets in desks():
        before = [page_of(tickets, query) for query in of_sort]
        for after, bumped in writes(tickets):
            for query, page in zip(of_sort, before, strict=True):
                if page_of(after, query) != page:
                    changed += 1
                    depends_on = of_list(ORGANIZATION, query)
                    parts = [ticket_tag(ticket.id) for ticket in page[0]] if depends_on.watched else []
                    assert {*depends_on.tags, *parts} & set(bumped), (query, tickets, after)
    assert changed > 1000


def test_clearing_lists_leaves_none() -> None:
    for query in queries():
        assert set(of_list(ORGANIZATION, query).tags) & set(lists(ORGANIZATION))


def test_a_ticket_is_never_bumped_without_what_its_lists_watch() -> None:
    for query in queries():
        for facets in ([], ["title"], FACETS):
            bumped = written(ORGANIZATION, [1, 2], facets)
            assert {ticket_tag(1), ticket_tag(2), tickets_tag(ORGANIZATION)} <= set(bumped)
            assert set(of_list(ORGANIZATION, query).watched) <= set(bumped)


def test_what_lists_do_not_depend_on_leaves_them() -> None:
    by_priority = of_list(ORGANIZATION, {"priority": "high"})
    assert by_priority == of_list(ORGANIZATION, {"priority": "high", "sort": "-created_at"}), "the order of creation"
    assert not set(by_priority.tags) & set(written(ORGANIZATION, [1], ["status", "title"]))
    assert set(by_priority.tags) & set(written(ORGANIZATION, [1], ["priority"]))

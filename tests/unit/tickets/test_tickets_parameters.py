"""What lists and reports read from a query, and the cursors they give out."""

import datetime as dt
import itertools
import uuid
from typing import Any
from urllib.parse import urlencode

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from libs.common.models import Priority, Status
from libs.common.problems import Problem
from libs.common.query_metrics import statement_labels
from services.tickets import reports, routes_reports
from services.tickets.cursors import Place, moment_bytes, moment_of, read_cursor, read_place, write_cursor, write_place
from services.tickets.lists import _description
from services.tickets.parameters import limit_of
from services.tickets.routes_lists import wanted_of
from services.tickets.store_lists import LISTS, Filter, Sort, Wanted, list_statement

TODAY = dt.date(2026, 3, 1)
SOMEBODY = uuid.UUID(int=1)
moments = st.datetimes(timezones=st.just(dt.UTC))
wants = st.builds(
    Wanted,
    statuses=st.frozensets(st.sampled_from(Status)),
    priorities=st.frozensets(st.sampled_from(Priority)),
    assigned_to=st.none() | st.uuids(),
    user_id=st.none() | st.uuids(),
    sort=st.sampled_from(Sort),
)


def request(**query: Any) -> web.Request:
    return make_mocked_request("GET", f"/?{urlencode({name.strip('_'): value for name, value in query.items()})}")


@given(moments, st.uuids(), wants)
def test_a_cursor_is_read_as_the_place_it_was_made_of(
    moment: dt.datetime, ticket_id: uuid.UUID, wanted: Wanted
) -> None:
    of = _description(wanted)
    assert read_place(of, write_place(of, Place(moment, ticket_id))) == Place(moment, ticket_id)


@pytest.mark.parametrize(
    ("of", "cursor"),
    [
        (_description(Wanted()), "wBN8Dp_0Mt0ABkmuQHnGAAGXf348TXqqi7sBI0Vnias"),
        ("audit None", "RbTyKfuzce0ABkmuQHnGAAGXf348TXqqi7sBI0Vnias"),
        ("audit key.created", "AwbdmzALE5sABkmuQHnGAAGXf348TXqqi7sBI0Vnias"),
    ],
)
def test_a_cursor_that_was_given_out_stays_readable(of: str, cursor: str) -> None:
    moment = dt.datetime(2026, 1, 31, 12, 30, 15, 123456, dt.UTC)
    place = Place(moment, uuid.UUID("01977f7e-3c4d-7aaa-8bbb-0123456789ab"))
    assert read_place(of, cursor) == place
    assert write_place(of, place) == cursor


@given(moments, st.uuids(), wants, wants)
def test_a_cursor_of_another_sort_or_other_filters_is_refused(
    moment: dt.datetime, ticket_id: uuid.UUID, wanted: Wanted, other: Wanted
) -> None:
    cursor = write_place(_description(wanted), Place(moment, ticket_id))
    if wanted != other:
        with pytest.raises(Problem, match="another sort or other filters"):
            read_place(_description(other), cursor)


def test_every_filter_and_the_sort_change_what_a_cursor_is_bound_to() -> None:
    lists = [
        Wanted(),
        *(Wanted(sort=sort) for sort in Sort if sort is not Sort.NEWEST),
        Wanted(statuses=frozenset({Status.OPEN})),
        Wanted(statuses=frozenset({Status.OPEN, Status.PENDING})),
        Wanted(priorities=frozenset({Priority.LOW})),
        Wanted(assigned_to=SOMEBODY),
        Wanted(user_id=SOMEBODY),
        Wanted(unassigned=True),
    ]
    assert len({_description(wanted) for wanted in lists}) == len(lists)


@given(st.text() | st.binary(min_size=28, max_size=36).map(lambda raw: raw.hex()))
def test_text_that_is_no_cursor_is_refused_as_a_parameter(text: str) -> None:
    with pytest.raises(Problem, match="invalid_parameter"):
        read_place("tickets", text)


@pytest.mark.parametrize("text", ["", "x", "/" * 43, "-" * 31, "_" * 43, "\xe9" * 43, "A" * 43 + "\x00"])
def test_a_forged_cursor_is_refused(text: str) -> None:
    with pytest.raises(Problem, match="invalid_parameter"):
        read_place("tickets", text)


def test_a_cursor_of_another_size_is_refused() -> None:
    with pytest.raises(Problem, match="not one that this API gave out"):
        read_cursor("a", write_cursor("a", b"four"), 5)


@given(moments)
def test_a_moment_is_eight_bytes(moment: dt.datetime) -> None:
    raw = moment_bytes(moment)
    assert (len(raw), moment_of(raw)) == (8, moment)


def test_a_moment_beyond_the_calendar_is_refused() -> None:
    with pytest.raises(Problem, match="invalid_parameter"):
        moment_of(b"\x7f" + b"\xff" * 7)


@pytest.mark.parametrize(("text", "limit"), [("1", 1), ("100", 100), ("007", 7)])
def test_a_page_has_one_to_a_hundred_rows(text: str, limit: int) -> None:
    assert limit_of(request(limit=text)) == limit
    assert limit_of(request()) == 25


@pytest.mark.parametrize("text", ["", "0", "101", "-1", "1.0", "1e1", "00999", "00010000", "9" * 5000, "\u0663", "x"])
def test_another_page_size_is_refused(text: str) -> None:
    with pytest.raises(Problem, match="invalid_parameter"):
        limit_of(request(limit=text))


def test_a_query_names_filters_and_sort() -> None:
    assert wanted_of(request()) == Wanted(sort=Sort.NEWEST)
    assert wanted_of(request(status="open,pending,open", priority="urgent", sort="updated_at")) == Wanted(
        statuses=frozenset({Status.OPEN, Status.PENDING}), priorities=frozenset({Priority.URGENT}), sort=Sort.UPDATED
    )
    assert wanted_of(request(assigned_to="none")) == Wanted(unassigned=True)
    assert wanted_of(request(assigned_to=str(SOMEBODY), user_id=SOMEBODY.hex)) == Wanted(
        assigned_to=SOMEBODY, user_id=SOMEBODY
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *itertools.product(
            ["status", "priority"], ["", "Open", "open;low", "open,", ",low", "open, low", "all", "\x00"]
        ),
        *itertools.product(["assigned_to", "user_id"], ["", "me", "None", "1", "nobody", str(SOMEBODY) + ","]),
        ("user_id", "none"),
        *(("sort", text) for text in ("", "number", "--created_at", "+created_at", "created_at,id", "id")),
    ],
)
def test_another_filter_or_sort_is_refused(name: str, text: str) -> None:
    with pytest.raises(Problem, match="invalid_parameter"):
        wanted_of(request(**{name: text}))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("status", "one or several, with commas between, of open, pending, solved, closed"),
        ("assigned_to", "a user's id (a UUID) or me or none"),
        ("user_id", "a user's id (a UUID) or me"),
        ("sort", "one of created_at, -created_at"),
    ],
)
def test_a_refusal_says_what_may_stand_there(name: str, said: str) -> None:
    with pytest.raises(Problem) as caught:
        wanted_of(request(**{name: "nobody"}))
    assert said in str(caught.value.detail)


@given(wants, st.booleans())
def test_every_list_that_can_be_asked_for_has_its_statement(wanted: Wanted, unassigned: bool) -> None:  # noqa: FBT001
    if unassigned:
        wanted = Wanted(unassigned=True, user_id=wanted.user_id, sort=wanted.sort, statuses=wanted.statuses)
    which, arguments = list_statement(wanted, None, 26)
    statement = LISTS[which]
    assert f"${len(arguments) + 1}" in statement
    assert f"${len(arguments) + 2}" not in statement


def test_the_lists_are_few_and_name_their_tenant_everywhere() -> None:
    assert len(LISTS) == len(Filter) * len(Sort) - 4
    for statement in LISTS.values():
        assert statement.count("organization_id = $1") == statement.lower().count("from tickets") + 1
        assert statement_labels(statement) == ("select", "tickets")


def test_a_report_is_of_thirty_days_up_to_today_unless_told_otherwise() -> None:
    assert reports.range_of(None, None, TODAY) == (dt.date(2026, 1, 31), TODAY)
    assert reports.range_of(None, dt.date(2025, 1, 30), TODAY) == (dt.date(2025, 1, 1), dt.date(2025, 1, 30))
    assert reports.range_of(dt.date(2026, 2, 28), None, TODAY).days == [dt.date(2026, 2, 28), TODAY]
    one_day = reports.range_of(TODAY, TODAY, TODAY)
    assert (one_day.start, one_day.end) == (
        dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
        dt.datetime(2026, 3, 2, tzinfo=dt.UTC),
    )
    assert len(reports.range_of(dt.date(2024, 1, 1), dt.date(2024, 12, 31), TODAY).days) == 366


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (dt.date(2026, 3, 2), None, "from (2026-03-02) must not be after to (2026-03-01, which is today, the default)"),
        (dt.date(2026, 3, 2), TODAY, "from (2026-03-02) must not be after to (2026-03-01)."),
        (dt.date(2024, 1, 1), dt.date(2025, 1, 1), "at most 366 days; 2024-01-01 to 2025-01-01 are 367"),
        (dt.date.min, None, "to 2026-03-01, which is today, the default, are"),
        (None, dt.date.min, "calendar"),
        (dt.date.max, dt.date.max, "calendar"),
    ],
)
def test_another_range_is_refused(first: dt.date | None, last: dt.date | None, said: str) -> None:
    with pytest.raises(Problem, match="invalid_parameter") as caught:
        reports.range_of(first, last, TODAY)
    assert said in str(caught.value.detail)


@pytest.mark.parametrize(
    "text", ["", "2026-13-01", "2026-02-29", "20260201", "2026-W05-6", "01.02.2026", "today", "2026-1-1"]
)
def test_a_day_is_an_iso_8601_calendar_date(text: str) -> None:
    for name in ("from", "to"):
        with pytest.raises(Problem, match="such as 2026-01-31"):
            routes_reports.range_of(request(**{name: text}))
    assert routes_reports.range_of(request(_from="2026-01-01", to="2026-01-31")) == (
        dt.date(2026, 1, 1),
        dt.date(2026, 1, 31),
    )

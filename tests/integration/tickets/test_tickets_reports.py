"""Reports beside the same computed in Python, and where they are read: the analytics replica and nowhere else."""

import asyncio
import collections
import contextlib
import datetime as dt
import itertools
import math
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, cast

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

from infra.local.postgres_replica import PostgresReplica
from infra.local.stack import Stack
from libs.common.consistency import AS_OF_HEADER, HEADER, Requirement
from libs.common.identity import Principal, Signer
from libs.common.models import NewTicket, Status
from libs.common.problems import Problem
from services.tickets import database as database_module
from services.tickets import servers
from services.tickets.database import Database
from services.tickets.reports import backlog_report
from services.tickets.store_tickets import STATUS_IDS
from services.tickets.tickets import create_ticket
from tests.support.many_tickets import fill
from tests.support.processes import running_service
from tests.support.tickets import TicketsClient, TicketsDatabase, eventually, tickets_database, with_database

TICKETS = 2000
REPLICA = "replica-2"  # it is the analytics replica here, and serves nothing else
ROWS = "SELECT * FROM tickets WHERE organization_id = $1"
STATUSES = {number: status for status, number in STATUS_IDS.items()}
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
DAY = dt.timedelta(days=1)

ClientOf = Callable[[Principal], TicketsClient]


class Reporting(NamedTuple):
    """A database, and clients of a service that has an analytics replica."""

    database: TicketsDatabase
    client_of: ClientOf


class Filled(NamedTuple):
    client: TicketsClient
    rows: list[dict[str, Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reporting(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reporting]:
    log = tmp_path_factory.mktemp("reports") / "tickets.log"
    signer = Signer(stack.credentials.signing_key("gateway"))
    async with tickets_database(stack) as database:
        reader, analytics = (with_database(url, database.name) for url in stack.replica_urls)
        environment = database.environment | {"TICKETS_REPLICA_URLS": reader, "TICKETS_ANALYTICS_URL": analytics}
        async with (
            running_service(stack, "tickets", log, script=(), **environment) as service,
            aiohttp.ClientSession() as session,
        ):
            yield Reporting(database, lambda principal: TicketsClient(session, service.url, signer, principal))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def filled(reporting: Reporting) -> Filled:
    (principal,) = await reporting.database.organization()
    (other,) = await reporting.database.organization()
    for organization_id in (other.organization_id, principal.organization_id):
        many = await fill(reporting.database.superuser, organization_id, TICKETS)
    rows = [dict(row) for row in await reporting.database.superuser.fetch(ROWS, many.organization_id)]
    client = reporting.client_of(principal)
    await client.create("Here, so that the client has a token that includes all of the above")
    rows = [dict(row) for row in await reporting.database.superuser.fetch(ROWS, many.organization_id)]
    assert len(rows) == TICKETS + 1
    return Filled(client, rows)


async def report(client: TicketsClient, name: str, **query: str) -> Any:
    answer = await client.request("GET", f"/api/reports/{name}", params={key.strip("_"): v for key, v in query.items()})
    assert answer.status == 200, answer
    assert answer.headers[HEADER]
    assert answer.headers[AS_OF_HEADER]
    return answer.body


def ranges(rows: list[dict[str, Any]]) -> list[tuple[dt.date, dt.date]]:
    """A year, a month, a day, and one without tickets."""
    newest = max(row["created_at"] for row in rows).date()
    rng = random.Random(4)
    some = newest - rng.randint(40, 300) * DAY
    return [
        (newest - 365 * DAY, newest),
        (some, some + 30 * DAY),
        (some, some),
        (newest - 800 * DAY, newest - 700 * DAY),
    ]


def within(rows: list[dict[str, Any]], first: dt.date, last: dt.date) -> list[dict[str, Any]]:
    return [row for row in rows if first <= row["created_at"].astimezone(dt.UTC).date() <= last]


def percentile(values: Sequence[float], share: float) -> float:
    """Interpolated between the two values about it, as percentile_cont is."""
    place = share * (len(values) - 1)
    below, above = sorted(values)[math.floor(place)], sorted(values)[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def times(durations: Sequence[dt.timedelta]) -> dict[str, Any]:
    seconds = [duration.total_seconds() for duration in durations]
    if not seconds:
        return {"count": 0} | dict.fromkeys(PERCENTILES)
    told = {name: pytest.approx(percentile(seconds, share), abs=1e-3) for name, share in PERCENTILES.items()}
    return {"count": len(seconds)} | told


async def test_tickets_are_counted_by_status_assignee_and_day(filled: Filled) -> None:
    for first, last in ranges(filled.rows):
        rows = within(filled.rows, first, last)
        asked = {"_from": str(first), "to": str(last)}
        by_status = collections.Counter(STATUSES[row["status_id"]] for row in rows)
        assert await report(filled.client, "tickets", by="status", **asked) == {
            "by": "status",
            "from": str(first),
            "to": str(last),
            "total": len(rows),
            "counts": [{"count": by_status[status], "status": status} for status in Status],
        }
        by_day = collections.Counter(row["created_at"].date() for row in rows)
        days = [first + number * DAY for number in range((last - first).days + 1)]
        told = await report(filled.client, "tickets", by="day", **asked)
        assert told["counts"] == [{"count": by_day[day], "day": str(day)} for day in days]
        by_assignee = collections.Counter(row["assigned_to"] for row in rows)
        told = await report(filled.client, "tickets", by="assignee", **asked)
        counts = {one.get("assigned_to"): one["count"] for one in told["counts"]}
        assert counts == {str(user) if user else None: count for user, count in by_assignee.items()}
        assert list(counts.values()) == sorted(counts.values(), reverse=True)
        assert told["total"] == len(rows)


async def test_waiting_times_are_those_of_the_tickets_created_in_the_range(filled: Filled) -> None:
    for first, last in ranges(filled.rows):
        rows = within(filled.rows, first, last)
        responded = [row["first_response_at"] - row["created_at"] for row in rows if row["first_response_at"]]
        solved = [row["solved_at"] - row["created_at"] for row in rows if row["solved_at"]]
        told = await report(filled.client, "times", _from=str(first), to=str(last))
        assert told == {
            "from": str(first),
            "to": str(last),
            "first_response": times(responded),
            "resolution": times(solved),
        }


async def test_the_backlog_is_what_is_unsolved_by_age(filled: Filled) -> None:
    told = await report(filled.client, "backlog")
    at = dt.datetime.fromisoformat(told["as_at"])
    assert abs(at - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
    ages = [at - row["created_at"] for row in filled.rows if STATUSES[row["status_id"]] in {"open", "pending"}]
    assert told["ages"] == times(ages)
    assert told["oldest"] == pytest.approx(max(ages).total_seconds(), abs=1e-3)
    bounds = [dt.timedelta(0), *(dt.timedelta(days=days) for days in (1, 3, 7, 30)), dt.timedelta.max]
    assert [bucket["below_days"] for bucket in told["buckets"]] == [1, 3, 7, 30, None]
    assert [bucket["count"] for bucket in told["buckets"]] == [
        sum(low <= age < high for age in ages) for low, high in itertools.pairwise(bounds)
    ]
    assert all(bucket["count"] for bucket in told["buckets"])


async def test_reports_of_an_organization_without_tickets(reporting: Reporting, filled: Filled) -> None:
    """It has none of another's: the database's other organizations have thousands."""
    (principal,) = await reporting.database.organization()
    client = reporting.client_of(principal)
    answer = await client.request("GET", "/api/tickets", headers={"Relaydesk-Read-Primary": "1"})
    assert answer.body["tickets"] == []
    today = dt.datetime.now(dt.UTC).date()
    told = await report(client, "tickets")
    assert (told["from"], told["to"], told["total"]) == (str(today - 29 * DAY), str(today), 0)
    assert (await report(client, "tickets", by="assignee"))["counts"] == []
    nothing = times([])
    assert await report(client, "times") == {
        "from": str(today - 29 * DAY),
        "to": str(today),
        "first_response": nothing,
        "resolution": nothing,
    }
    backlog = await report(client, "backlog")
    assert (backlog["oldest"], backlog["ages"]) == (None, nothing)
    assert {bucket["count"] for bucket in backlog["buckets"]} == {0}
    assert len(filled.rows) > TICKETS


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("tickets", {"by": "priority"}),
        ("tickets", {"by": ""}),
        ("tickets", {"from": "2026-02-30"}),
        ("tickets", {"to": "yesterday"}),
        ("tickets", {"from": "2026-02-02", "to": "2026-02-01"}),
        ("tickets", {"from": "2024-01-01", "to": "2025-01-01"}),
        ("tickets", {"to": "0001-01-01"}),
        ("tickets", {"from": "9999-12-31", "to": "9999-12-31"}),
        ("times", {"from": "2026-01-01T00:00:00Z"}),
        ("times", {"from": "9999-12-31"}),
        ("times", {"from": ""}),
    ],
)
async def test_a_report_that_cannot_be_made(filled: Filled, name: str, query: dict[str, str]) -> None:
    answer = await filled.client.request("GET", f"/api/reports/{name}", params=query)
    assert (answer.status, answer.code) == (400, "invalid_parameter")


async def test_reports_need_an_analytics_replica(reporting: Reporting) -> None:
    async with Database.open(reporting.database.settings(TICKETS_ANALYTICS_URL="")) as database:
        with pytest.raises(Problem, match="TICKETS_ANALYTICS_URL is not set") as refused:
            await backlog_report(database, uuid.uuid4(), Requirement())
        assert refused.value.code == "service_unavailable"


@contextlib.asynccontextmanager
async def paused(url: str) -> AsyncIterator[None]:
    """A standby that replays nothing."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT pg_wal_replay_pause()")
        await eventually(lambda: connection.fetchval("SELECT pg_get_wal_replay_pause_state() = 'paused'"))
        yield
    finally:
        await connection.execute("SELECT pg_wal_replay_resume()")
        await connection.close()


async def test_a_report_is_read_on_the_analytics_replica_and_nothing_older_than_asked_for(
    stack: Stack, reporting: Reporting
) -> None:
    (principal,) = await reporting.database.organization()
    client = reporting.client_of(principal)
    await client.create()
    assert (await report(client, "tickets"))["total"] == 1, "its own write, by its token"
    replica = cast("PostgresReplica", stack.parts[REPLICA])
    async with paused(replica.url(reporting.database.name, superuser=True)):
        await client.create()
        for _ in range(10):  # by clients that send no token
            assert (await report(reporting.client_of(principal), "tickets"))["total"] == 1
            assert (await report(reporting.client_of(principal), "backlog"))["ages"]["count"] == 1
        assert len((await client.request("GET", "/api/tickets")).body["tickets"]) == 2, "lists are read elsewhere"
        refused = await client.request("GET", "/api/reports/tickets")
        assert (refused.status, refused.code) == (503, "service_unavailable")
        assert "token" in refused.body["detail"]
        waiting = asyncio.create_task(report(client, "tickets"))
        await asyncio.sleep(0)
    assert (await waiting)["total"] == 2, "waited for"


async def test_a_report_waits_until_the_analytics_replica_has_what_is_asked_for(
    stack: Stack, reporting: Reporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "REPORT_WAIT_SECONDS", 60.0)
    (principal,) = await reporting.database.organization()
    replica = cast("PostgresReplica", stack.parts[REPLICA])
    async with reporting_database(reporting, stack) as (database, analytics):
        async with paused(replica.url(reporting.database.name, superuser=True)):
            _reply, position = await create_ticket(database, principal, NewTicket(title="Waited for"))
            asked = asyncio.create_task(backlog_report(database, principal.organization_id, Requirement(position)))

            async def waits() -> bool:
                return bool(analytics.waiting) or asked.done()

            await eventually(waits)
            assert not asked.done(), "it was not waited for"
        found = await asked
        assert found.value.ages.count == 1
        assert position <= found.as_of <= found.consistency
        assert not analytics.waiting


async def test_a_report_that_waits_in_vain_keeps_no_read_from_waiting(
    stack: Stack, reporting: Reporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "REPORT_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(servers, "WAIT_SECONDS", 60.0)
    monkeypatch.setattr(servers, "NO_WAIT_SECONDS", 60.0)
    (principal,) = await reporting.database.organization()
    both = [cast("PostgresReplica", stack.parts[name]) for name in ("replica-1", REPLICA)]
    async with reporting_database(reporting, stack) as (database, analytics), contextlib.AsyncExitStack() as pauses:
        (reader,) = database.servers.replicas
        monkeypatch.setattr(reader, "_lag_seconds", 60.0)
        for replica in both:
            await pauses.enter_async_context(paused(replica.url(reporting.database.name, superuser=True)))
        _reply, position = await create_ticket(database, principal, NewTicket(title="Waited for"))
        with pytest.raises(Problem, match="not yet replayed what the token asks for") as refused:
            await backlog_report(database, principal.organization_id, Requirement(position))
        assert refused.value.code == "service_unavailable"
        assert not analytics.waiting

        read = asyncio.create_task(database.read(principal.organization_id, Requirement(position), port_on))

        async def waits() -> bool:
            return bool(reader.waiting) or read.done()

        await eventually(waits)
        await pauses.aclose()
        assert (await read).value == both[0].port


async def test_a_token_from_the_future_is_refused_rather_than_waited_for_again(
    stack: Stack, reporting: Reporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "REPORT_WAIT_SECONDS", 0.1)
    (principal,) = await reporting.database.organization()
    async with reporting_database(reporting, stack) as (database, analytics):
        assert analytics.standing is not None
        ahead = analytics.standing.position._replace(lsn=2**62)
        with pytest.raises(Problem, match="from the future") as refused:
            await backlog_report(database, principal.organization_id, Requirement(ahead))
        assert refused.value.code == "invalid_parameter"


async def test_a_report_tells_when_the_replica_was_lost_while_it_waited(
    stack: Stack, reporting: Reporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reporting_database(reporting, stack) as (database, analytics):
        assert analytics.standing is not None
        ahead = analytics.standing.position._replace(lsn=2**62)

        async def lost(*_arguments: object) -> None:
            monkeypatch.setattr(analytics, "_lag_seconds", -1.0)

        monkeypatch.setattr(database.servers, "first_with", lost)
        with pytest.raises(Problem, match="is too far behind"):
            await backlog_report(database, uuid.uuid4(), Requirement(ahead))


@contextlib.asynccontextmanager
async def reporting_database(reporting: Reporting, stack: Stack) -> AsyncIterator[tuple[Database, servers.Replica]]:
    """A service's database with one replica for reads and one for reports, both usable."""
    reader, analytics = (with_database(url, reporting.database.name) for url in stack.replica_urls)
    settings = reporting.database.settings(TICKETS_REPLICA_URLS=reader, TICKETS_ANALYTICS_URL=analytics)
    async with Database.open(settings) as database:
        reports = database.servers.analytics
        assert reports is not None

        async def usable() -> bool:
            return all(replica.usable for replica in (*database.servers.replicas, reports))

        await eventually(usable)
        yield database, reports


async def port_on(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT inet_server_port()"))


async def test_without_the_analytics_replica_there_are_no_reports_but_everything_else(
    stack: Stack, reporting: Reporting
) -> None:
    (principal,) = await reporting.database.organization()
    client = reporting.client_of(principal)
    made = (await client.create()).body
    stack.kill(REPLICA)
    await stack.wait_until_dead(REPLICA)
    try:
        refused = await client.request("GET", "/api/reports/tickets")
        assert (refused.status, refused.code) == (503, "service_unavailable")
        assert refused.headers["Retry-After"]
        assert (await client.request("GET", f"/api/tickets/{made['id']}")).body == made
        await client.create(f"Another {uuid.uuid4()}")
    finally:
        await stack.restart(REPLICA)

    async def answers() -> bool:
        return (await client.request("GET", "/api/reports/tickets")).status == 200

    await eventually(answers)
    assert (await report(client, "tickets"))["total"] == 2

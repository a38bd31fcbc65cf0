"""The service's statements with arguments out of a tenant of many tickets, and the server's plans for them.

A hot statement is one that a request, the relay or a report waits for. What its plan must be is said here once: the
index it reads and how many of the server's pages (8 kB each) it may touch, however many tickets there are.
"""

import contextlib
import datetime as dt
import functools
import hashlib
import importlib
import operator
import pkgutil
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg
import msgspec

import services.tickets
from libs.common.models import Priority, Status
from services.tickets import (
    store_audit,
    store_bulk,
    store_comments,
    store_history,
    store_idempotency,
    store_people,
    store_relay,
    store_reports,
    store_tickets,
)
from services.tickets.cursors import Place
from services.tickets.database import APP_ROLE, IDENTITY_ROLE, RELAY_ROLE
from services.tickets.store_lists import LISTS, Filter, Sort, Wanted, list_statement
from tests.support.many_tickets import LONGEST, ManyTickets

_SQL = re.compile(r"\s*(select|insert|update|delete|with)\b", re.IGNORECASE)
# Ways to plan: for these values; once for all values, as the server does after a few executions; and the same on a
# server that was left as it comes, which thinks that reading a page here and there is dear.
MODES = {
    "these values": "SET LOCAL plan_cache_mode = force_custom_plan",
    "every value": "SET LOCAL plan_cache_mode = force_generic_plan",
    "every value, stock costs": "SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL random_page_cost = 4",
}
_WHOLE_INDEXES = """
SELECT part.relname AS part, whole.relname AS whole
FROM pg_inherits JOIN pg_class part ON part.oid = inhrelid JOIN pg_class whole ON whole.oid = inhparent
WHERE part.relkind = 'i'"""

Arguments = Callable[[ManyTickets], Sequence[Any]]


class Hot(NamedTuple):
    """A statement that somebody waits for.

    `indexes` are those its plan reads, all of them (any one of a tuple); `pages` is the most that it may touch (None:
    it grows with what it reads, so only the indexes are looked at).
    """

    name: str
    sql: str
    arguments: Arguments
    indexes: tuple[str, ...]
    pages: int | None
    role: str = APP_ROLE


class Plan(msgspec.Struct, frozen=True):
    """What the server did: `text` as it explains it, `pages` touched, times in milliseconds."""

    text: str
    indexes: frozenset[str]
    pages: int
    rows: int
    planning: float
    execution: float


def every_statement() -> dict[str, str]:
    """Every constant that is SQL, also within a mapping of constants: `store_lists.LISTS[status -created_at]`."""
    found: dict[str, str] = {}
    for module in pkgutil.iter_modules(services.tickets.__path__):
        if module.name.startswith("store_"):
            for name, value in vars(importlib.import_module(f"services.tickets.{module.name}")).items():
                several = value if isinstance(value, Mapping) else {None: value}
                for key, sql in several.items():
                    if name.isupper() and not name.startswith("_") and isinstance(sql, str) and _SQL.match(sql):
                        found[name if key is None else f"{name}[{' '.join(key)}]"] = sql
    return found


def every_list() -> Iterator[Hot]:
    """The first page of each list, and one that begins in the middle of the tenant's year."""
    for (wanted, sort), sql in LISTS.items():
        index = _index_of(wanted, sort)
        for middle in (False, True):
            name = f"LISTS[{wanted} {sort}]" + (" in the middle" if middle else "")
            arguments = functools.partial(_list_arguments, wanted, sort, middle)
            yield Hot(name, sql, arguments, ("tickets_pkey", index), 300)


def _index_of(wanted: Filter, sort: Sort) -> str:
    if wanted in {Filter.NONE, Filter.STATUS, Filter.PRIORITY}:
        by_creation = {Filter.NONE: "idx_tickets_created_at", Filter.STATUS: "idx_tickets_list"}
        created = by_creation.get(wanted, "idx_tickets_status_priority")
        return created if sort.column == "created_at" else "idx_tickets_updated_at"
    people = {Filter.USER: "idx_tickets_user_id", Filter.UNASSIGNED_USER: "idx_tickets_user_id"}
    return people.get(wanted, "idx_tickets_assigned_to") + ("" if sort.column == "created_at" else "_updated_at")


def _list_arguments(kind: Filter, sort: Sort, middle: bool, many: ManyTickets) -> Sequence[Any]:  # noqa: FBT001
    """The widest list of its kind: every status, every priority."""
    unassigned = kind in {Filter.UNASSIGNED, Filter.UNASSIGNED_USER}
    assigned = kind in {Filter.ASSIGNEE, Filter.ASSIGNEE_USER}
    user = kind in {Filter.USER, Filter.UNASSIGNED_USER, Filter.ASSIGNEE_USER}
    wanted = Wanted(
        statuses=frozenset(Status) if kind is Filter.STATUS else frozenset(),
        priorities=frozenset(Priority) if kind is Filter.PRIORITY else frozenset(),
        unassigned=unassigned,
        assigned_to=many.agent(7) if assigned else None,
        user_id=(many.importer if assigned else many.requester(7)) if user else None,
        sort=sort,
    )
    place = Place(many.created_at(many.tickets // 2), many.ticket(many.tickets // 2)) if middle else None
    which, arguments = list_statement(wanted, place, 26)
    assert which == (kind, sort)
    return [many.organization_id, *arguments]


def _of_ticket(*more: Any) -> Arguments:
    return lambda many: [many.organization_id, many.longest, *more]


def _of_range(*more: Any) -> Arguments:
    """The last 30 days, as reports are asked for."""
    return lambda many: [many.organization_id, many.newest - dt.timedelta(days=30), many.newest, *more]


def _of_tenant(*more: Any) -> Arguments:
    return lambda many: [many.organization_id, *more]


_FIRST, _LAST = uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)
_END = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)
_PERCENTILES = [0.5, 0.9, 0.95, 0.99]
_COMMENTS = ("idx_comments_ticket",)
_PRIMARY = ("tickets_pkey",)

HOT: tuple[Hot, ...] = (
    *every_list(),
    Hot("SELECT_TICKET", store_tickets.SELECT_TICKET, _of_ticket(), _PRIMARY, 8),
    Hot("LOCK_TICKET", store_tickets.LOCK_TICKET, _of_ticket(), _PRIMARY, 16),
    Hot("TICKET_EXISTS", store_comments.TICKET_EXISTS, _of_ticket(), _PRIMARY, 8),
    Hot("LIST_COMMENTS", store_comments.LIST_COMMENTS, _of_ticket(_FIRST, 26), _COMMENTS, 40),
    Hot("LIST_NEWEST_COMMENTS", store_comments.LIST_NEWEST_COMMENTS, _of_ticket(_LAST, 26), _COMMENTS, 40),
    Hot("SELECT_COMMENTS", store_comments.SELECT_COMMENTS, _of_ticket(LONGEST), _COMMENTS, 200),
    Hot("LIST_HISTORY", store_history.LIST_HISTORY, _of_ticket(0, 26), ("ticket_history_pkey", *_PRIMARY), 120),
    Hot(
        "LIST_NEWEST_HISTORY",
        store_history.LIST_NEWEST_HISTORY,
        _of_ticket(2**60, 26),
        ("ticket_history_pkey", *_PRIMARY),
        120,
    ),
    Hot("LIST_AUDIT", store_audit.LIST_AUDIT, _of_tenant(_END, _LAST, 26), ("audit_log_pkey",), 60),
    Hot(
        "LIST_AUDIT_OF_ACTION",
        store_audit.LIST_AUDIT_OF_ACTION,
        _of_tenant(_END, _LAST, 26, "key.created"),
        ("idx_audit_log_action",),
        60,
    ),
    Hot("NEXT_NUMBER", store_tickets.NEXT_NUMBER, _of_tenant(), ("organizations_pkey",), 30),
    Hot("LOCK_NUMBERS", store_bulk.LOCK_NUMBERS, _of_tenant(), ("organizations_pkey",), 16),
    Hot(
        "KNOWN_EXTERNAL_IDS",
        store_bulk.KNOWN_EXTERNAL_IDS,
        lambda many: [
            many.organization_id,
            [f"legacy-{number}" for number in range(1, many.tickets, many.tickets // 500)],
        ],
        ("tickets_external_id_key",),
        3000,
    ),
    Hot(
        "CLAIM_KEY",
        store_idempotency.CLAIM_KEY,
        lambda many: [many.organization_id, many.agent(1), hashlib.sha256(b"new").digest(), 24],
        (),  # the function's own statement does not show
        100,
    ),
    Hot(
        "SELECT_CREDENTIAL",
        store_people.SELECT_CREDENTIAL,
        lambda many: [f"neighbour-7-{many.organization_id.hex[-12:]}", "1@example.com"],
        ("organizations_slug_key", "users_organization_id_email_key"),
        20,
        IDENTITY_ROLE,
    ),
    Hot(
        "SELECT_KEY_OWNER",
        store_people.SELECT_KEY_OWNER,
        lambda many: [hashlib.sha256(many.agent(7).bytes).digest()],
        ("idx_api_keys_sha256",),
        20,
        IDENTITY_ROLE,
    ),
    Hot(
        "SELECT_ROWS", store_relay.SELECT_ROWS, lambda _many: [list(range(32)), 1000], ("outbox_pkey",), 300, RELAY_ROLE
    ),
    Hot("COUNT_BY_STATUS", store_reports.COUNT_BY_STATUS, _of_range([1, 2, 3, 4]), (), None),
    Hot("COUNT_BY_ASSIGNEE", store_reports.COUNT_BY_ASSIGNEE, _of_range(), (), None),
    Hot("COUNT_BY_DAY", store_reports.COUNT_BY_DAY, _of_range(), ("idx_tickets_created_at",), None),
    Hot("TIMES", store_reports.TIMES, _of_range(_PERCENTILES), ("idx_tickets_created_at",), None),
    Hot("BACKLOG_AGES", store_reports.BACKLOG_AGES, _of_tenant([1, 2], _PERCENTILES, [1, 3, 7, 30]), (), None),
)


@contextlib.asynccontextmanager
async def as_role(superuser: asyncpg.Connection, role: str, organization_id: uuid.UUID) -> AsyncIterator[None]:
    """A transaction as a service's role within a tenant; nothing of it stays."""
    transaction = superuser.transaction()
    await transaction.start()
    try:
        await superuser.execute(f"SET LOCAL ROLE {role}")
        await superuser.execute("SELECT set_config('relaydesk.organization_id', $1, true)", str(organization_id))
        yield
    finally:
        await transaction.rollback()


async def explained(connection: asyncpg.Connection, sql: str, arguments: Sequence[Any], mode: str) -> Plan:
    """Run a statement and tell how it was run: not the first time, which reads the catalogue; the fastest of three."""
    await connection.execute(MODES[mode])
    prepared = await connection.prepare(sql)
    values = f"({', '.join(map(literal, arguments))})" if arguments else ""
    execute = f"EXECUTE {prepared.get_name()}{values}"
    await connection.execute(f"EXPLAIN ANALYZE {execute}")
    runs = [await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {execute}") for _ in range(3)]
    told = min((msgspec.json.decode(run)[0] for run in runs), key=operator.itemgetter("Execution Time"))
    text = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {execute}"))
    plan = told["Plan"]
    return Plan(
        text,
        await _whole(connection, _indexes(plan)),
        plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
        int(plan["Actual Rows"]),
        told["Planning Time"],
        told["Execution Time"],
    )


async def estimated(connection: asyncpg.Connection, sql: str) -> frozenset[str]:
    """The indexes of a statement's plan for every value; it is not run."""
    await connection.execute(MODES["every value"])
    prepared = await connection.prepare(sql)
    nulls = ", ".join("NULL" for _ in prepared.get_parameters())
    execute = f"EXECUTE {prepared.get_name()}" + (f"({nulls})" if nulls else "")
    (told,) = msgspec.json.decode(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {execute}"))
    return await _whole(connection, _indexes(told["Plan"]))


async def _whole(connection: asyncpg.Connection, indexes: Iterator[str]) -> frozenset[str]:
    """A partition's index by the name of the partitioned table's."""
    wholes = {row["part"]: row["whole"] for row in await connection.fetch(_WHOLE_INDEXES)}
    return frozenset(wholes.get(index, index) for index in indexes)


def _indexes(plan: Mapping[str, Any]) -> Iterator[str]:
    if "Index Name" in plan:
        yield plan["Index Name"]
    for child in plan.get("Plans", ()):
        yield from _indexes(child)


def literal(value: Any) -> str:
    """A value as SQL text."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    if isinstance(value, list):
        return "'{" + ",".join(str(one) for one in value) + "}'"
    return "'" + str(value).replace("'", "''") + "'"

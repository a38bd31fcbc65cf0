"""`make database-page`: writes docs/database.md from a real server with a million tickets of one tenant.

Tables and indexes are read from the catalogue, plans from EXPLAIN ANALYZE as the service's roles under row-level
security. It takes some minutes; nothing on the page is written by hand but the texts in this file.
"""

import asyncio
import itertools
import platform
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import asyncpg
import uvloop

from infra.local.stack import Stack
from libs.common.models import Role
from services.tickets.database import APP_ROLE, IDENTITY_ROLE, MAINTENANCE_ROLE, RELAY_ROLE
from services.tickets.store_lists import LISTS
from tests.support.hot_statements import HOT, Plan, as_role, estimated, every_statement, explained
from tests.support.many_tickets import ManyTickets, fill, fill_around
from tests.support.tickets import tickets_database

PAGE = Path(__file__).parents[2] / "docs" / "database.md"
TICKETS = 1_000_000
OTHER_TICKETS = 20_000

TABLES = {
    "organizations": "tenants, and the last ticket number of each",
    "users": "people of an organization",
    "credentials": "password hashes (argon2id)",
    "api_keys": "hashes of API keys",
    "tickets": "tickets as they are now",
    "comments": "comments on tickets",
    "ticket_history": "one row for each version of a ticket: who changed what",
    "audit_log": "sign-ins, and what was done to people and keys",
    "idempotency_records": "what creations with an Idempotency-Key were answered with, kept for 24 hours",
    "outbox": "events that wait for Kafka; a row lives for some milliseconds",
    "relay_shards": "which relay publishes which share of the tickets, by lease",
    "relay_instances": "relays that were seen lately",
    "database_timelines": "timelines of the write-ahead log that this database has lived on",
    "schema_migrations": "migrations that were applied",
}
# Why an index is there that no statement's plan shows and that keeps nothing unique.
UNREAD = {
    "idx_idempotency_records_key": "`CLAIM_KEY`, within the function `claim_idempotency_key`",
    "idx_tickets_search": "read by none of our statements: it is on the list of indexes that was agreed on, and "
    "full-text search is served by the search service from a database of its own. Every ticket's text is indexed here "
    "all the same, which is the dearest part of its INSERT",
}
_LIST_PLANS = ("LISTS[none -created_at]", "LISTS[status -created_at]", "LISTS[assignee -updated_at]")

_INTRODUCTION = """\
# Database

<!-- Written by `make database-page`; do not edit. -->

What stands in the tickets database, and how the server runs each statement of the service. This page is generated:
`make database-page` fills PostgreSQL {version} of the embedded stack ({buffers} of shared buffers, {machine}) with
{tickets:,} tickets of one tenant, {others:,} of another and 2,000 empty tenants, and writes down what
`EXPLAIN (ANALYZE, BUFFERS)` says, as the roles of the service within the tenant, under row-level security. The tenant
has 100 agents; 5,000 creators, one of whom, an import, made every fifth ticket; one ticket in ten without an assignee;
and most tickets are closed. Plans are those for every value (generic plans), which the server uses after a statement's
first executions.

A *page* is 8 kB of a table or an index that the statement touches, in memory or not; their number says what a statement
does, whatever the machine. Times are of a warm cache. `test_tickets_plans.py` holds index and a bound on the pages for
each hot statement, with 200,000 tickets; `make bench BENCH=lists` measures the lists with eight clients.
"""
_PARTITIONED = """\
Partitions are made ahead and dropped whole when their time is over; nothing that grows with time is deleted from row by
row. The outbox is not partitioned: it needs `UNIQUE (organization_id, ticket_id, version)` and
stays small."""
_LISTS = """\
## Lists

A list reads entries of one index in the order it shows: one range for each wanted pair of status and priority (of each
status, or one range, where that is enough), 26 entries of each at most: a page of 25, and one more that tells whether
there is a next page. The ranges are read from the index alone and merged, and the page's rows are fetched by primary
key. So a page costs what its length costs, wherever it lies and however many tickets there are. The widest list of each
kind stands here, with every status and every priority. `none` is the list without a filter; lists by status in the
order of changes are read as `priority`.

Two kinds depend on more than that. A list by assignee *and* creator passes over the assignee's tickets of other
creators, and a list of unassigned tickets of one creator over that creator's assigned ones, both in the index alone.
And after writes, until vacuum has come by, an entry costs a page of the table as well: at most 26 of each pair.

| list | order | index | pages, first page | pages, in the middle | ms, first page | ms, in the middle |
|---|---|---|---|---|---|---|"""
_REPORTS = """\
Reports (`COUNT_BY_STATUS`, `COUNT_BY_ASSIGNEE`, `COUNT_BY_DAY` and `TIMES` of the last 30 days, and `BACKLOG_AGES`)
read every ticket of their range; they run on the analytics replica only."""

_TABLES = """
SELECT c.relname AS name, pg_get_partkeydef(c.oid) AS key, c.relrowsecurity AND c.relforcerowsecurity AS protected,
       array_to_string(c.reloptions, ', ') AS options,
       coalesce((SELECT sum(pg_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = c.oid),
                pg_relation_size(c.oid))::bigint AS bytes,
       coalesce((SELECT sum(greatest(p.reltuples, 0)) FROM pg_inherits JOIN pg_class p ON p.oid = inhrelid
                 WHERE inhparent = c.oid), greatest(c.reltuples, 0))::bigint AS rows
FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
ORDER BY c.relname"""
INDEXES = """
SELECT i.relname AS name, t.relname AS table, x.indisunique AS unique, x.indisprimary AS primary,
       substring(pg_get_indexdef(i.oid) FROM 'USING .*') AS definition,
       coalesce((SELECT sum(pg_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = i.oid),
                pg_relation_size(i.oid))::bigint AS bytes
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
WHERE t.relnamespace = 'public'::regnamespace AND NOT t.relispartition ORDER BY t.relname, i.relname"""
_PARTITIONS = "SELECT count(*) FROM pg_inherits WHERE inhparent = $1::regclass"

# Who runs a statement that the application's role may not.
_ROLES = (APP_ROLE, IDENTITY_ROLE, RELAY_ROLE, MAINTENANCE_ROLE)


class Facts(NamedTuple):
    """What was found out about the statements: plans of the hot ones by name, indexes that all of them read."""

    plans: dict[str, Plan]
    reads: dict[str, frozenset[str]]


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="relaydesk-page-") as folder:
        stack = Stack(Path(folder) / "stack", services=(), replicas=0)
        try:
            async with stack, tickets_database(stack) as database:
                for number in (OTHER_TICKETS, TICKETS):
                    (principal,) = await database.organization(Role.ADMIN)
                    many = await fill(database.superuser, principal.organization_id, number)
                await fill_around(database.superuser, many)
                async with database.superuser.acquire() as connection:
                    text = await page(connection, many)
        finally:
            stack.remove()
    PAGE.write_text(text, encoding="utf-8")


async def page(connection: asyncpg.Connection, many: ManyTickets) -> str:
    facts = await facts_of(connection, many)
    parts = [
        await _introduction(connection, many),
        await _tables(connection),
        await _indexes(connection, facts),
        _lists(facts),
        _hot(facts),
        _others(facts),
    ]
    return "\n".join(line.rstrip() for part in parts for line in part) + "\n"


async def facts_of(connection: asyncpg.Connection, many: ManyTickets) -> Facts:
    plans: dict[str, Plan] = {}
    reads: dict[str, frozenset[str]] = {}
    for hot in HOT:
        async with as_role(connection, hot.role, many.organization_id):
            plans[hot.name] = await explained(connection, hot.sql, hot.arguments(many), "every value")
    for name, sql in every_statement().items():
        reads[name] = plans[name].indexes if name in plans else await _read_by(connection, sql, many)
    return Facts(plans, reads)


async def _read_by(connection: asyncpg.Connection, sql: str, many: ManyTickets) -> frozenset[str]:
    for role in _ROLES:
        try:
            async with as_role(connection, role, many.organization_id):
                return await estimated(connection, sql)
        except asyncpg.InsufficientPrivilegeError:
            continue
    raise AssertionError(f"no role of the service may run this:\n{sql}")


async def _introduction(connection: asyncpg.Connection, many: ManyTickets) -> list[str]:
    version = await connection.fetchval("SHOW server_version")
    buffers = await connection.fetchval("SHOW shared_buffers")
    text = _INTRODUCTION.format(
        version=version, buffers=buffers, machine=platform.machine(), tickets=many.tickets, others=OTHER_TICKETS
    )
    return [*text.splitlines(), ""]


async def _tables(connection: asyncpg.Connection) -> list[str]:
    lines = [
        "## Tables",
        "",
        "Every row of a tenant carries `organization_id`, and row-level security is forced on its table.",
        "",
        "| table | what stands in it | rows here | size | security | set |",
        "|---|---|---|---|---|---|",
    ]
    for row in await connection.fetch(_TABLES):
        cut = ""
        if row["key"]:
            cut = f"; in partitions by {row['key'].lower()}, {await connection.fetchval(_PARTITIONS, row['name'])} here"
        security = "forced" if row["protected"] else "no tenant's"
        lines.append(
            f"| `{row['name']}` | {TABLES[row['name']]}{cut} | {max(row['rows'], 0):,} | {_size(row['bytes'])} "
            f"| {security} | {row['options'] or ''} |"
        )
    return [*lines, "", *_PARTITIONED.splitlines(), ""]


async def _indexes(connection: asyncpg.Connection, facts: Facts) -> list[str]:
    lines = [
        "## Indexes",
        "",
        "| index | on | size here | read by |",
        "|---|---|---|---|",
    ]
    for row in await connection.fetch(INDEXES):
        readers = sorted(name for name, indexes in facts.reads.items() if row["name"] in indexes)
        told = _readers(readers)
        if not told and row["name"] in UNREAD:
            told = UNREAD[row["name"]]
        elif not told:
            told = "keeps its columns unique" if row["unique"] else "**nothing**"
        definition = row["definition"].removeprefix("USING btree ").replace("|", "\\|")
        lines.append(f"| `{row['name']}` | `{row['table']}` `{definition}` | {_size(row['bytes'])} | {told} |")
    return [*lines, ""]


def _readers(names: list[str]) -> str:
    """Names of statements; lists by what they filter by."""
    lists = [name.removeprefix("LISTS[").removesuffix("]").rpartition(" ") for name in names if "[" in name]
    by_sort = {
        sort: [kind for kind, _, _sort in found]
        for sort, found in itertools.groupby(sorted(lists, key=lambda one: one[2]), key=lambda one: one[2])
    }
    if len(lists) == len(LISTS):
        return "; ".join([*(f"`{name}`" for name in names if "[" not in name), "every list"])
    told = [f"lists by `{sort}`: {', '.join(kinds)}" for sort, kinds in by_sort.items()]
    return "; ".join([*(f"`{name}`" for name in names if "[" not in name), *told])


def _lists(facts: Facts) -> list[str]:
    lines = _LISTS.splitlines()
    for name, plan in facts.plans.items():
        if name.startswith("LISTS[") and name.endswith("]"):
            kind, _, sort = name.removeprefix("LISTS[").removesuffix("]").rpartition(" ")
            middle = facts.plans[f"{name} in the middle"]
            (index,) = plan.indexes - {"tickets_pkey"}
            lines.append(
                f"| {kind} | `{sort}` | `{index}` | {plan.pages} | {middle.pages} | {plan.execution:.2f} "
                f"| {middle.execution:.2f} |"
            )
    lines += ["", "The plans of three of them; the others differ in the index and the condition."]
    for name in _LIST_PLANS:
        lines += ["", f"`{name}`", "", "```", facts.plans[name].text, "```"]
    return [*lines, ""]


def _hot(facts: Facts) -> list[str]:
    lines = ["## Other statements that somebody waits for", ""]
    lines += ["| statement | indexes | pages | rows | ms |", "|---|---|---|---|---|"]
    others = {name: plan for name, plan in facts.plans.items() if not name.startswith("LISTS[")}
    for name, plan in others.items():
        indexes = _names(plan.indexes) or "inside the function"
        lines.append(f"| `{name}` | {indexes} | {plan.pages:,} | {plan.rows:,} | {plan.execution:.2f} |")
    lines += ["", *_REPORTS.splitlines()]
    for name, plan in others.items():
        lines += ["", f"### {name}", "", "```", plan.text, "```"]
    return [*lines, ""]


def _others(facts: Facts) -> list[str]:
    lines = [
        "## The remaining statements",
        "",
        "They were planned and not run here. An INSERT reads no index of its own.",
        "",
        "| statement | indexes that its plan reads |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {_names(indexes) or 'none'} |" for name, indexes in _not_run(facts)]
    return lines


def _not_run(facts: Facts) -> Iterator[tuple[str, frozenset[str]]]:
    for name in sorted(facts.reads):
        if name not in facts.plans:
            yield name, facts.reads[name]


def _names(indexes: Iterable[str]) -> str:
    return ", ".join(f"`{index}`" for index in sorted(indexes))


def _size(size: int) -> str:
    return f"{size / 2**20:,.0f} MB" if size >= 2**20 else f"{size / 2**10:,.0f} kB"


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(main())

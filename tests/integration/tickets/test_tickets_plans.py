"""How the server runs each hot statement among 200,000 tickets of one tenant: by which index, over how many pages."""

import re
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.models import Role
from tests.support.hot_statements import HOT, MODES, Hot, Plan, as_role, every_statement, explained
from tests.support.many_tickets import ManyTickets, fill, fill_around
from tests.support.tickets import tickets_database

TICKETS = 200_000
OTHER_TICKETS = 20_000
INDEXES = sorted({index for hot in HOT for index in hot.indexes})
DROP_INDEX = """
SELECT CASE WHEN conname IS NULL THEN 'DROP INDEX ' || $1
            ELSE format('ALTER TABLE %s DROP CONSTRAINT %I CASCADE', conrelid::regclass, conname) END
FROM pg_class LEFT JOIN pg_constraint ON conindid = pg_class.oid AND contype IN ('p', 'u')
WHERE pg_class.oid = $1::text::regclass"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def filled(stack: Stack) -> AsyncIterator[tuple[asyncpg.Connection, ManyTickets]]:
    """A superuser's connection to a database with two tenants, and the bigger one."""
    async with tickets_database(stack) as database:
        for number in (OTHER_TICKETS, TICKETS):
            (principal,) = await database.organization(Role.ADMIN)
            many = await fill(database.superuser, principal.organization_id, number)
        await fill_around(database.superuser, many)
        async with database.superuser.acquire() as connection:
            yield connection, many


def wrong(hot: Hot, plan: Plan) -> str | None:
    """What is not as it should be with a plan."""
    if missing := [index for index in hot.indexes if index not in plan.indexes]:
        return f"{hot.name} does not read {', '.join(missing)}:\n{plan.text}"
    if hot.pages is not None and plan.pages > hot.pages:
        return f"{hot.name} touches {plan.pages} pages, more than {hot.pages}:\n{plan.text}"
    return None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hot", HOT, ids=lambda hot: hot.name)
async def test_a_hot_statement_reads_its_index_and_few_pages(
    filled: tuple[asyncpg.Connection, ManyTickets], hot: Hot, mode: str
) -> None:
    connection, many = filled
    async with as_role(connection, hot.role, many.organization_id):
        assert wrong(hot, await explained(connection, hot.sql, hot.arguments(many), mode)) is None


@pytest.mark.parametrize("index", INDEXES)
async def test_a_missing_index_would_be_noticed(filled: tuple[asyncpg.Connection, ManyTickets], index: str) -> None:
    connection, many = filled
    hot = next(hot for hot in HOT if index in hot.indexes)
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(await connection.fetchval(DROP_INDEX, index))
        async with as_role(connection, hot.role, many.organization_id):
            plan = await explained(connection, hot.sql, hot.arguments(many), "these values")
            assert "does not read" in (wrong(hot, plan) or "")
    finally:
        await transaction.rollback()


async def test_a_list_without_its_index_touches_many_pages(filled: tuple[asyncpg.Connection, ManyTickets]) -> None:
    """The bound on pages notices what reading another index would not."""
    connection, many = filled
    hot = next(hot for hot in HOT if hot.name == "LISTS[unassigned -created_at]")
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("DROP INDEX idx_tickets_assigned_to, idx_tickets_assigned_to_updated_at")
        async with as_role(connection, hot.role, many.organization_id):
            plan = await explained(connection, hot.sql, hot.arguments(many), "these values")
            assert "pages, more than" in (wrong(hot._replace(indexes=()), plan) or "")
    finally:
        await transaction.rollback()


async def test_nothing_is_seen_by_a_plan_that_is_not_the_tenants(
    filled: tuple[asyncpg.Connection, ManyTickets],
) -> None:
    """The plans above are those of the role under row-level security: its condition stands in each."""
    connection, many = filled
    for hot in HOT:
        if hot.role == "tickets_app" and "tickets_pkey" in hot.indexes:
            async with as_role(connection, hot.role, many.organization_id):
                plan = await explained(connection, hot.sql, hot.arguments(many), "these values")
                assert re.search(r"current_setting\('relaydesk.organization_id'", plan.text), hot.name
                assert plan.rows > 0, hot.name


def test_every_hot_statement_is_one_of_the_service() -> None:
    statements = every_statement()
    for hot in HOT:
        assert statements[hot.name.removesuffix(" in the middle")] == hot.sql

"""docs/database.md shows every statement of the service and every index of its schema."""

import asyncpg
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.migrations import migrate
from services.tickets.paths import MIGRATIONS
from tests.bench.database_page import INDEXES, TABLES
from tests.support.hot_statements import HOT, every_statement
from tests.support.pages import DOCS, sections

PAGE = (DOCS / "database.md").read_text(encoding="utf-8")
SECTIONS = sections("database.md")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def indexes(stack: Stack) -> list[asyncpg.Record]:
    url = await stack.primary.create_database("contract_page")
    await migrate(url, MIGRATIONS)
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(INDEXES))
    finally:
        await connection.close()


async def test_every_index_of_the_schema_is_on_the_page_as_it_is(indexes: list[asyncpg.Record]) -> None:
    told = {line for line in SECTIONS["Indexes"].splitlines() if line.startswith("| `")}
    for index in indexes:
        definition = index["definition"].removeprefix("USING btree ").replace("|", "\\|")
        begins = f"| `{index['name']}` | `{index['table']}` `{definition}` |"
        assert any(line.startswith(begins) for line in told), begins
    assert len(told) == len(indexes)


async def test_every_table_of_the_schema_is_on_the_page(indexes: list[asyncpg.Record]) -> None:
    told = {line.split("`")[1] for line in SECTIONS["Tables"].splitlines() if line.startswith("| `")}
    assert told == {index["table"] for index in indexes} == set(TABLES)


@pytest.mark.parametrize("name", sorted(every_statement()))
def test_every_statement_of_the_service_is_on_the_page(name: str) -> None:
    if name.startswith("LISTS["):
        kind, _, sort = name.removeprefix("LISTS[").removesuffix("]").rpartition(" ")
        assert f"\n| {kind} | `{sort}` | `" in SECTIONS["Lists"]
    else:
        assert f"\n| `{name}` | " in PAGE


def test_every_hot_statement_has_its_plan_on_the_page() -> None:
    for hot in HOT:
        if not hot.name.startswith("LISTS["):
            assert f"\n### {hot.name}\n\n```\n" in PAGE


def test_a_statement_that_is_gone_is_gone_from_the_page() -> None:
    statements = every_statement()
    for title in ("Other statements that somebody waits for", "The remaining statements"):
        for line in SECTIONS[title].splitlines():
            if line.startswith("| `"):
                assert line.split("`")[1] in statements

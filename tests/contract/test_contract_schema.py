"""What the migrations make: the indexes that were agreed on, and row-level security without a way around it."""

import asyncpg
import pytest
import pytest_asyncio

from infra.local.stack import Stack
from libs.common.migrations import SchemaError, migrate, read
from services.search import paths as search_paths
from services.tickets import paths as tickets_paths

INDEXES = {
    "idx_tickets_user_id": ["user_id"],
    "idx_tickets_assigned_to": ["assigned_to"],
    "idx_tickets_created_at": ["created_at"],
    "idx_tickets_status_priority": ["status_id, priority_id"],
    "idx_tickets_list": ["(organization_id, status_id, created_at) INCLUDE (id, title, priority_id)"],
    "idx_tickets_search": ["USING gin", "to_tsvector('english'::regconfig", "title", "description"],
}
UNPROTECTED = """
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'organization_id'
  AND NOT (c.relrowsecurity AND c.relforcerowsecurity)"""
# The owner of this table is who its search function runs as; the function takes the organization as a parameter.
NOT_FORCED = {"tickets": [], "search": ["documents"]}
UNSECURED = UNPROTECTED.replace("c.relrowsecurity AND c.relforcerowsecurity", "c.relrowsecurity")
WITH_TENANTS = """
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'organization_id'"""
OWNED = """
SELECT relname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE r.rolname LIKE $1
UNION ALL SELECT proname FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner WHERE r.rolname LIKE $1
UNION ALL SELECT nspname FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner WHERE r.rolname LIKE $1
UNION ALL SELECT datname FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE r.rolname LIKE $1"""
POWERFUL = """
SELECT rolname FROM pg_roles
WHERE rolname LIKE $1
  AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication OR rolcanlogin)"""
MEMBERSHIPS = """
SELECT member.rolname FROM pg_auth_members m JOIN pg_roles member ON member.oid = m.member
WHERE member.rolname LIKE $1"""
# Functions that run as their owner see past the policies of whoever calls them.
DEFINERS = "SELECT proname FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"
FOR_EVERYBODY = DEFINERS + " AND (proacl IS NULL OR proacl::text LIKE '%{=X%' OR proacl::text LIKE '%,=X%')"
SCHEMAS = {"tickets": tickets_paths.MIGRATIONS, "search": search_paths.MIGRATIONS}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def databases(stack: Stack) -> dict[str, str]:
    """Databases that nothing but the migrations has touched."""
    made = {name: await stack.primary.create_database(f"contract_{name}") for name in SCHEMAS}
    for name, url in made.items():
        assert await migrate(url, SCHEMAS[name]) == [migration for migration, *_rest in read(SCHEMAS[name])]
    return made


async def rows(url: str, query: str, *arguments: object) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return [row[0] for row in await connection.fetch(query, *arguments)]
    finally:
        await connection.close()


@pytest.mark.parametrize(("name", "parts"), INDEXES.items())
async def test_an_index_that_was_agreed_on_is_there(databases: dict[str, str], name: str, parts: list[str]) -> None:
    query = "SELECT indexdef FROM pg_indexes WHERE tablename = 'tickets' AND indexname = $1"
    (definition,) = await rows(databases["tickets"], query, name)
    assert all(part in definition for part in parts), definition


@pytest.mark.parametrize("name", SCHEMAS)
async def test_row_level_security_is_forced_on_every_table_with_tenants(databases: dict[str, str], name: str) -> None:
    assert await rows(databases[name], WITH_TENANTS) != []
    assert await rows(databases[name], UNPROTECTED) == NOT_FORCED[name]
    assert await rows(databases[name], UNSECURED) == []


async def test_organizations_are_protected_too(databases: dict[str, str]) -> None:
    query = "SELECT relname FROM pg_class WHERE relname = 'organizations' AND relrowsecurity AND relforcerowsecurity"
    assert await rows(databases["tickets"], query) == ["organizations"]


@pytest.mark.parametrize("name", SCHEMAS)
async def test_the_roles_of_a_service_own_nothing_and_have_no_powers(databases: dict[str, str], name: str) -> None:
    pattern = f"{name}\\_%"
    roles = await rows(databases[name], "SELECT rolname FROM pg_roles WHERE rolname LIKE $1", pattern)
    assert f"{name}_app" in roles
    assert await rows(databases[name], OWNED, pattern) == []
    assert await rows(databases[name], POWERFUL, pattern) == []
    assert await rows(databases[name], MEMBERSHIPS, pattern) == []


async def test_the_functions_that_run_as_their_owner_are_known_and_not_for_everybody(databases: dict[str, str]) -> None:
    assert set(await rows(databases["tickets"], DEFINERS)) == {"make_partitions", "drop_partitions"}
    assert await rows(databases["tickets"], FOR_EVERYBODY) == []


@pytest.mark.parametrize("name", SCHEMAS)
async def test_migrating_again_changes_nothing(databases: dict[str, str], name: str) -> None:
    assert await migrate(databases[name], SCHEMAS[name]) == []


async def test_a_migration_that_was_changed_afterwards_is_refused(stack: Stack) -> None:
    url = await stack.primary.create_database("contract_changed")
    await migrate(url, tickets_paths.MIGRATIONS)
    connection = await asyncpg.connect(url)
    await connection.execute("UPDATE schema_migrations SET sha256 = 'x'")
    await connection.close()
    with pytest.raises(SchemaError, match="0001_tickets was changed"):
        await migrate(url, tickets_paths.MIGRATIONS)

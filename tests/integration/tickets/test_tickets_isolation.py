# ruff: noqa: S608 (statements are made of the names of tables)
"""Row-level security: whatever SQL says, a role sees and writes its tenant's rows only."""

import datetime as dt
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from libs.common.identity import Principal
from libs.common.postgres import create_pool
from services.tickets.database import APP_ROLE, IDENTITY_ROLE, RELAY_ROLE
from tests.support.tickets import TicketsDatabase
from tests.support.transactions import transaction

TIMED_TABLES = ("ticket_history", "audit_log", "idempotency_records")
TENANT_TABLES = ("users", "credentials", "api_keys", "tickets", "comments", "outbox", *TIMED_TABLES)
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

# A row of each table for the organization $1, its user $2, and a ticket $3.
INSERTS = {
    "users": """
        INSERT INTO users (organization_id, email, name, role)
        SELECT $1, $3::uuid::text || '@x', 'N', 'agent' WHERE $2::uuid IS NOT NULL""",
    "api_keys": """
        INSERT INTO api_keys (organization_id, user_id, name, prefix, key_sha256)
        VALUES ($1, $2, 'k', 'p', uuid_send($3))""",
    "credentials": """
        INSERT INTO credentials (organization_id, user_id, password_hash) VALUES ($1, $2, $3::uuid::text)""",
    "tickets": """
        INSERT INTO tickets (organization_id, id, number, title, description, status_id, priority_id, user_id,
                             external_id, version, created_at, updated_at)
        VALUES ($1, $3, 1, 't', '', 1, 1, $2, 'x', 1, now(), now())""",
    "comments": """
        INSERT INTO comments (organization_id, id, ticket_id, author_id, body, created_at)
        VALUES ($1, gen_random_uuid(), $3, $2, 'b', now())""",
    "outbox": """
        INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, created_at)
        SELECT $1, $3, 1, 0, coalesce($2, gen_random_uuid()), 't', '', now()""",
    "ticket_history": """
        INSERT INTO ticket_history (organization_id, ticket_id, version, at, event_id, type, actor_id, actor_kind,
                                    actor_name, changes)
        SELECT $1, $3, 1, now(), gen_random_uuid(), 't', coalesce($2, gen_random_uuid()), 'k', 'n', '{}'""",
    "audit_log": """
        INSERT INTO audit_log (organization_id, actor_id, actor_kind, actor_name, action, target_id)
        SELECT $1, $2, 'k', 'n', 'a', $3""",
    "idempotency_records": """
        INSERT INTO idempotency_records (organization_id, user_id, key_sha256, fingerprint, status, headers, body)
        SELECT $1, coalesce($2, gen_random_uuid()), uuid_send($3), '', 201, '{}', ''""",
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tenants(desk: TicketsDatabase) -> tuple[Principal, Principal, uuid.UUID, uuid.UUID]:
    """Two organizations with a row in every table, and their tickets."""
    (ours,) = await desk.organization()
    (theirs,) = await desk.organization()
    tickets = uuid.uuid4(), uuid.uuid4()
    for principal, ticket_id in zip((ours, theirs), tickets, strict=True):
        for statement in INSERTS.values():
            await desk.superuser.execute(statement, principal.organization_id, principal.user_id, ticket_id)
    return ours, theirs, *tickets


async def pool_of(desk: TicketsDatabase, role: str) -> asyncpg.Pool:
    return await create_pool(desk.environment["TICKETS_DATABASE_URL"], role=role, service="test", minimum=0, maximum=2)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def app(desk: TicketsDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with await pool_of(desk, APP_ROLE) as pool:
        yield pool


Tenants = tuple[Principal, Principal, uuid.UUID, uuid.UUID]


@pytest.mark.parametrize("table", [name for name in TENANT_TABLES if name not in {"outbox", "credentials"}])
async def test_the_application_sees_its_tenants_rows_only(app: asyncpg.Pool, tenants: Tenants, table: str) -> None:
    ours, theirs, *_tickets = tenants
    for seen, hidden in ((ours, theirs), (theirs, ours)):
        async with transaction(app, organization_id=seen.organization_id) as connection:
            rows = await connection.fetch(f"SELECT DISTINCT organization_id FROM {table}")
            assert [row["organization_id"] for row in rows] == [seen.organization_id]
            named = f"SELECT count(*) FROM {table} WHERE organization_id = $1"
            assert await connection.fetchval(named, hidden.organization_id) == 0
    async with transaction(app, organization_id=ours.organization_id) as connection:
        assert [row["id"] for row in await connection.fetch("SELECT id FROM organizations")] == [ours.organization_id]


@pytest.mark.parametrize(
    "table", ["organizations", "users", "credentials", "api_keys", "tickets", "comments", *TIMED_TABLES]
)
async def test_without_a_tenant_nothing_is_seen(app: asyncpg.Pool, tenants: Tenants, table: str) -> None:
    ours, *_rest = tenants
    assert await app.fetchval(f"SELECT count(*) FROM {table}") == 0
    async with transaction(app, organization_id=ours.organization_id):
        pass
    async with app.acquire() as connection:  # the same connection: the setting of a transaction ends with it
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0


@pytest.mark.parametrize("table", ["organizations", "users", "credentials", "api_keys", "tickets"])
async def test_an_update_reaches_no_row_of_another_tenant(
    desk: TicketsDatabase, app: asyncpg.Pool, tenants: Tenants, table: str
) -> None:
    ours, theirs, *_tickets = tenants
    key = "id" if table == "organizations" else "organization_id"
    before = await desk.superuser.fetch(f"SELECT t::text FROM {table} t WHERE {key} = $1", theirs.organization_id)
    assert len(before) == (2 if table == "users" else 1)
    async with transaction(app, organization_id=ours.organization_id) as connection:
        named = await connection.execute(f"UPDATE {table} SET {key} = {key} WHERE {key} = $1", theirs.organization_id)
        assert named == "UPDATE 0"
        everything = await connection.execute(f"UPDATE {table} SET {key} = {key}")
        assert everything == f"UPDATE {2 if table == 'users' else 1}"
    after = await desk.superuser.fetch(f"SELECT t::text FROM {table} t WHERE {key} = $1", theirs.organization_id)
    assert after == before


@pytest.mark.parametrize("table", ["organizations", "users", "api_keys", "tickets"])
async def test_a_row_cannot_be_moved_to_another_tenant(app: asyncpg.Pool, tenants: Tenants, table: str) -> None:
    ours, theirs, *_tickets = tenants
    key = "id" if table == "organizations" else "organization_id"
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        async with transaction(app, organization_id=ours.organization_id) as connection:
            await connection.execute(f"UPDATE {table} SET {key} = $1", theirs.organization_id)


@pytest.mark.parametrize("table", TENANT_TABLES)
@pytest.mark.parametrize("with_tenant", [True, False])
async def test_a_row_cannot_be_inserted_for_another_tenant(
    app: asyncpg.Pool, tenants: Tenants, table: str, *, with_tenant: bool
) -> None:
    ours, theirs, *_tickets = tenants
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        async with transaction(app, organization_id=ours.organization_id if with_tenant else None) as connection:
            await connection.execute(INSERTS[table], theirs.organization_id, theirs.user_id, uuid.uuid4())
    if table == "outbox":
        return
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with transaction(app, organization_id=None) as connection:
            await connection.execute(INSERTS[table], ours.organization_id, ours.user_id, uuid.uuid4())


async def test_an_organization_cannot_be_made_by_another(app: asyncpg.Pool, tenants: Tenants) -> None:
    ours, *_rest = tenants
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        async with transaction(app, organization_id=ours.organization_id) as connection:
            await connection.execute("INSERT INTO organizations (id, slug, name) VALUES ($1, 'new', 'N')", uuid.uuid4())


async def test_keys_do_not_tell_of_another_tenants_rows(app: asyncpg.Pool, tenants: Tenants) -> None:
    """A foreign ticket, user or external id is refused or accepted as one that does not exist at all."""
    ours, theirs, our_ticket, their_ticket = tenants
    comment = """
        INSERT INTO comments (organization_id, id, ticket_id, author_id, body, created_at)
        VALUES ($1, gen_random_uuid(), $2, $3, 'b', now())"""
    for ticket_id, author_id in ((their_ticket, ours.user_id), (our_ticket, theirs.user_id)):
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            async with transaction(app, organization_id=ours.organization_id) as connection:
                await connection.execute(comment, ours.organization_id, ticket_id, author_id)
    same_id = """
        INSERT INTO tickets (organization_id, id, number, title, description, status_id, priority_id, user_id,
                             version, created_at, updated_at)
        VALUES ($1, $2, 2, 't', '', 1, 1, $3, 1, now(), now())"""
    async with transaction(app, organization_id=ours.organization_id) as connection:
        await connection.execute(same_id, ours.organization_id, their_ticket, ours.user_id)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1 FROM outbox",
        "DELETE FROM outbox",
        "DELETE FROM tickets",
        "DELETE FROM comments",
        "UPDATE comments SET body = 'x'",
        "DELETE FROM api_keys",
        "UPDATE ticket_history SET version = 1",
        "DELETE FROM ticket_history",
        "UPDATE audit_log SET action = 'x'",
        "DELETE FROM audit_log",
        "UPDATE idempotency_records SET status = 200",
        "DELETE FROM idempotency_records",
        "DELETE FROM organizations",
        "TRUNCATE tickets",
        "SELECT 1 FROM relay_shards",
        "UPDATE relay_shards SET epoch = 0",
        "ALTER TABLE tickets DISABLE ROW LEVEL SECURITY",
        "DROP POLICY tenant ON tickets",
        "CREATE TABLE mine (x int)",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql SECURITY DEFINER RETURN 1",
    ],
)
async def test_the_application_cannot(app: asyncpg.Pool, tenants: Tenants, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with transaction(app, organization_id=tenants[0].organization_id) as connection:
            await connection.execute(statement)


async def test_the_relay_sees_the_outbox_of_everybody_and_nothing_else(desk: TicketsDatabase, tenants: Tenants) -> None:
    ours, theirs, *_tickets = tenants
    async with await pool_of(desk, RELAY_ROLE) as pool:
        seen = {row["organization_id"] for row in await pool.fetch("SELECT organization_id FROM outbox")}
        assert {ours.organization_id, theirs.organization_id} <= seen
        for table in ("organizations", "users", "credentials", "api_keys", "tickets", "comments", *TIMED_TABLES):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await pool.fetch(f"SELECT 1 FROM {table}")
        for statement in ("UPDATE outbox SET data = ''", "TRUNCATE outbox", "DELETE FROM tickets"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await pool.execute(statement)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(INSERTS["outbox"], ours.organization_id, None, uuid.uuid4())


async def test_sign_in_reads_people_and_writes_nothing(desk: TicketsDatabase, tenants: Tenants) -> None:
    ours, *_rest = tenants
    async with await pool_of(desk, IDENTITY_ROLE) as pool:
        assert await pool.fetchval("SELECT id FROM organizations WHERE id = $1", ours.organization_id)
        assert await pool.fetchval("SELECT id FROM users WHERE id = $1", ours.user_id)
        for table in ("tickets", "comments", "outbox", "relay_shards", *TIMED_TABLES):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await pool.fetch(f"SELECT 1 FROM {table}")
        for table, statement in INSERTS.items():
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await pool.execute(statement, ours.organization_id, ours.user_id, uuid.uuid4())
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await pool.execute(f"UPDATE {table} SET organization_id = organization_id")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await pool.execute(f"DELETE FROM {table}")


@pytest.mark.parametrize("role", [APP_ROLE, IDENTITY_ROLE, RELAY_ROLE])
async def test_every_connection_of_a_pool_has_its_role(desk: TicketsDatabase, role: str, tenants: Tenants) -> None:
    """The pool's role is in force on every connection, also when one is used again."""
    async with await pool_of(desk, role) as pool:
        for _ in range(3):
            assert await pool.fetchval("SELECT current_user") == role

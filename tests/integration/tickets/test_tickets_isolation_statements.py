"""Every statement of the service, run as one organization against the rows of another.

Nothing is listed by hand: statements are the constants of the modules `store_*`, their arguments are made from the
types that the server says they have. Where a parameter is a UUID, every id of the other organization is tried. Each
statement is held by both walls alone: by row-level security with the other organization's id where it is asked for, and
by its own condition with row-level security out of the way.
"""

import contextlib
import datetime as dt
import importlib
import itertools
import pkgutil
import random
import re
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import asyncpg
import pytest
import pytest_asyncio

import services.tickets
from infra.local.stack import Stack
from libs.common.identity import Principal
from libs.common.postgres import create_pool, transaction_on
from services.tickets.database import APP_ROLE
from tests.support.tickets import TicketsDatabase, tickets_database

SECRET, SECRET_NUMBER = "theirs alone", 4711004711
# Statements of other roles: sign-in and key lookup begin without a tenant, the relay and the partitions have none.
NOT_A_TENANTS = {
    "SELECT_CREDENTIAL",
    "SELECT_KEY_OWNER",
    "MAKE_PARTITIONS",
    "DROP_PARTITIONS",
}
# What the statements of these modules do is done as a role of their own.
OTHER_ROLES = {"store_relay"}
# A row of the other organization in every table with a tenant, whatever their columns are called.
TENANT_TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND a.attname = 'organization_id' ORDER BY 1"""
TENANT = "SELECT set_config('relaydesk.organization_id', $1, true)"
COMBINATIONS = 300
# What a statement is given as text: what their rows are found by, and what no row has. Ours never hold the secret.
# JSON, for what is text to a statement may be JSON to its table.
KNOWN_TEXT, NEW_TEXT = '"known"', '"new"'
# Their tables want a certain word or a certain id; test_tickets_isolation.py inserts into these by hand.
WANT_MORE_THAN_TYPES = {"INSERT_ORGANIZATION", "INSERT_USER", "INSERT_CREDENTIAL"}
_VERB = re.compile(r"\s*(select|insert|update|delete|with)\b", re.IGNORECASE)
SOON = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)


def modules() -> list[ModuleType]:
    return [
        importlib.import_module(f"services.tickets.{found.name}")
        for found in pkgutil.iter_modules(services.tickets.__path__)
        if found.name.startswith("store_") and found.name not in OTHER_ROLES
    ]


def statements() -> dict[str, str]:
    """Every constant that is SQL, also within a mapping of constants."""
    found: dict[str, str] = {}
    for module in modules():
        for name, value in vars(module).items():
            several = value if isinstance(value, Mapping) else {None: value}
            for key, sql in several.items():
                if name.isupper() and isinstance(sql, str) and _VERB.match(sql) and name not in NOT_A_TENANTS:
                    found[name if key is None else f"{name} {key}"] = sql
    return found


class Others(NamedTuple):
    """The other organization and ids of its rows."""

    organization_id: uuid.UUID
    ids: tuple[uuid.UUID, ...]


INSERTS = {
    "credentials": "INSERT INTO credentials (organization_id, user_id, password_hash) VALUES ($1, $2, $5)",
    "api_keys": """
        INSERT INTO api_keys (organization_id, id, user_id, name, prefix, key_sha256)
        VALUES ($1, $4, $2, $5, 'p', uuid_send($1))""",
    "tickets": """
        INSERT INTO tickets (organization_id, id, number, title, description, status_id, priority_id, user_id,
                             assigned_to, external_id, version, created_at, updated_at)
        VALUES ($1, $3, $7, $5, $5, 1, 1, $2, $2, $6, 1, now(), now()),
               ($1, $4, 2, $5, $5, 1, 1, $2, NULL, NULL, 1, now(), now())""",
    "comments": """
        INSERT INTO comments (organization_id, id, ticket_id, author_id, body, created_at)
        VALUES ($1, $4, $3, $2, $5, now())""",
    "ticket_history": """
        INSERT INTO ticket_history (organization_id, ticket_id, version, at, event_id, type, actor_id, actor_kind,
                                    actor_name, changes)
        VALUES ($1, $3, 1, now(), $4, $5, $2, 'session', $5, '{}')""",
    "audit_log": """
        INSERT INTO audit_log (organization_id, id, actor_id, actor_kind, actor_name, action)
        VALUES ($1, $4, $2, 'session', $5, $6)""",
    "idempotency_records": """
        INSERT INTO idempotency_records (organization_id, user_id, key_sha256, fingerprint, status, headers, body)
        VALUES ($1, $2, 'x', $5::text::bytea, 201, '{}', $5::text::bytea)""",
    "outbox": """
        INSERT INTO outbox (organization_id, ticket_id, version, shard, event_id, type, data, created_at)
        VALUES ($1, $3, 1, 0, $4, $5, '', now())""",
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def database(stack: Stack) -> AsyncIterator[TicketsDatabase]:
    async with tickets_database(stack) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ours(database: TicketsDatabase) -> Principal:
    (principal,) = await database.organization()
    return principal


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def theirs(database: TicketsDatabase) -> Others:
    """An organization whose rows all hold the secret, at least one in each table."""
    (principal,) = await database.organization()
    organization_id, ticket_id, other_id = principal.organization_id, uuid.uuid4(), uuid.uuid4()
    await database.superuser.execute("UPDATE organizations SET name = $2 WHERE id = $1", organization_id, SECRET)
    await database.superuser.execute("UPDATE users SET name = $2 WHERE organization_id = $1", organization_id, SECRET)
    tables = {row[0] for row in await database.superuser.fetch(TENANT_TABLES)}
    assert tables == {"users", *INSERTS}
    for sql in INSERTS.values():
        used = [organization_id, principal.user_id, ticket_id, other_id, SECRET, KNOWN_TEXT, SECRET_NUMBER]
        numbered = {number: value for number, value in enumerate(used, start=1) if f"${number}" in sql}
        for position, number in enumerate(numbered, start=1):
            sql = sql.replace(f"${number}", f"${position}")  # noqa: PLW2901 (parameters have no gaps)
        await database.superuser.execute(sql, *numbered.values())
    return Others(organization_id, (principal.user_id, ticket_id, other_id))


@pytest_asyncio.fixture
async def app(database: TicketsDatabase) -> AsyncIterator[asyncpg.Connection]:
    url = database.environment["TICKETS_DATABASE_URL"]
    pool = await create_pool(url, role=APP_ROLE, service="test", minimum=0, maximum=1)
    async with pool, pool.acquire() as connection:
        yield connection


@contextlib.asynccontextmanager
async def rolled_back(connection: asyncpg.Connection) -> AsyncIterator[None]:
    await connection.execute("BEGIN")
    try:
        yield
    finally:
        await connection.execute("ROLLBACK")


async def snapshot(connection: Any, others: Others) -> list[str]:
    """Everything that belongs to the other organization."""
    tables = [row[0] for row in await connection.fetch(TENANT_TABLES)]
    found = [f"{row}" for row in await connection.fetch("SELECT * FROM organizations WHERE id = $1", others[0])]
    for table in tables:
        sql = f"SELECT t::text FROM {table} t WHERE organization_id = $1 ORDER BY 1"  # noqa: S608
        found += [f"{table} {row[0]}" for row in await connection.fetch(sql, others.organization_id)]
    return found


def argument(kind: str, text: str) -> Any:
    """A value of a type by the name the server gives it."""
    if kind.endswith("[]"):
        return [argument(kind.removesuffix("[]"), text)]
    values: dict[str, Any] = {
        "int2": 1, "int4": 1, "int8": 10, "text": text, "varchar": text, "name": text, "jsonb": "{}",
        "bytea": b"x", "timestamptz": SOON, "bool": True, "interval": dt.timedelta(days=1),
        "pg_lsn": 0, "float8": 1.0,
    }  # fmt: skip
    return values[kind]


def combinations(kinds: Sequence[str], first: Sequence[uuid.UUID], ids: Sequence[uuid.UUID]) -> list[list[Any]]:
    """Arguments with every choice of ids, or a fixed sample of 300 where there are more.

    The first UUID, the organization, is one of `first`. Texts are what the others' rows are found by, or new.
    """
    every: list[list[Any]] = []
    for text in (KNOWN_TEXT, NEW_TEXT):
        choices: list[list[Any]] = []
        organizations = list(first)
        for kind in kinds:
            if kind == "uuid":
                choices.append(organizations or list(ids))
                organizations = []
            else:
                choices.append([[one] for one in ids] if kind == "uuid[]" else [argument(kind, text)])
        every += [list(one) for one in itertools.islice(itertools.product(*choices), 20_000)]
    return every if len(every) <= COMBINATIONS else random.Random(1).sample(every, COMBINATIONS)


async def refused(connection: asyncpg.Connection, sql: str, arguments: Sequence[Any]) -> bool:
    try:
        await connection.execute(sql, *arguments)
    except asyncpg.PostgresError:
        return True
    return False


async def leaks(connection: asyncpg.Connection, sql: str, arguments: Sequence[Any]) -> list[str]:
    """What of the other organization a statement tells; a refusal tells nothing."""
    await connection.execute("SAVEPOINT before")
    try:
        rows = await connection.fetch(sql, *arguments)
    except asyncpg.PostgresError as error:
        await connection.execute("ROLLBACK TO before")
        return [str(error)] if SECRET in str(error.as_dict()) else []
    return [f"{row}" for row in rows if SECRET in f"{row}" or f"{SECRET_NUMBER}" in f"{row}"]


async def kinds_of(connection: asyncpg.Connection, sql: str) -> list[str]:
    return [f"{kind.name}" for kind in (await connection.prepare(sql)).get_parameters()]


@pytest.mark.parametrize("name", sorted(statements()))
async def test_row_level_security_alone_holds_a_statement(
    database: TicketsDatabase, app: asyncpg.Connection, ours: Principal, theirs: Others, name: str
) -> None:
    sql = statements()[name]
    before = await snapshot(database.superuser, theirs)
    assert sum(SECRET in line for line in before) > len(INSERTS)
    for arguments in combinations(await kinds_of(app, sql), (ours.organization_id, theirs.organization_id), theirs.ids):
        async with transaction_on(app, organization_id=ours.organization_id):
            assert await leaks(app, sql, arguments) == []
    assert await snapshot(database.superuser, theirs) == before


@pytest.mark.parametrize("name", sorted(statements()))
async def test_a_statements_own_condition_alone_holds_it(
    database: TicketsDatabase, ours: Principal, theirs: Others, name: str
) -> None:
    sql = statements()[name]
    async with database.superuser.acquire() as connection:
        kinds = await kinds_of(connection, sql)
        assert kinds[:1] == ["uuid"] or "uuid" not in kinds, "the first parameter is the organization"
        before = await snapshot(connection, theirs)
        for arguments in combinations(kinds, [ours.organization_id], theirs.ids):
            async with rolled_back(connection):
                assert await leaks(connection, sql, arguments) == []
                assert await snapshot(connection, theirs) == before


@pytest.mark.parametrize("name", sorted(statements()))
async def test_the_arguments_that_are_tried_are_good_ones(app: asyncpg.Connection, theirs: Others, name: str) -> None:
    """Within its own organization a statement does what it is for with one of them at least."""
    sql = statements()[name]
    kinds = await kinds_of(app, sql)
    for arguments in combinations(kinds, [theirs.organization_id], (*theirs.ids, uuid.uuid4())):
        async with rolled_back(app):
            await app.execute(TENANT, str(theirs.organization_id))
            if not await refused(app, sql, arguments):
                return
    assert name in WANT_MORE_THAN_TYPES, "every combination was refused"


async def test_the_search_for_leaks_finds_them(database: TicketsDatabase, theirs: Others) -> None:
    """With the other organization's own id and without row-level security, the reading statements tell everything."""
    leaking = set()
    async with database.superuser.acquire() as connection:
        for name, sql in statements().items():
            kinds = await kinds_of(connection, sql)
            for arguments in combinations(kinds, [theirs.organization_id], theirs.ids):
                async with rolled_back(connection):
                    if await leaks(connection, sql, arguments):
                        leaking.add(name)
    expected = {"SELECT_TICKET", "LOCK_TICKET", "SELECT_KEYS", "KNOWN_EXTERNAL_IDS"}
    assert expected <= leaking
    assert any(name.startswith("LISTS ") for name in leaking)


async def test_the_search_for_changes_finds_them(database: TicketsDatabase, theirs: Others) -> None:
    sql = "UPDATE tickets SET title = title || '!' WHERE organization_id = $1"
    async with database.superuser.acquire() as connection:
        before = await snapshot(connection, theirs)
        async with rolled_back(connection):
            await connection.execute(sql, theirs.organization_id)
            assert await snapshot(connection, theirs) != before

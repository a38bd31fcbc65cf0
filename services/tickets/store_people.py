"""SQL of organizations, users, credentials and API keys."""

import uuid

import asyncpg
import msgspec

from libs.common.models import Role
from libs.common.people import ApiKey, Organization, ResolvedKey, User

# The organization, with whoever has this e-mail in it and the hash of the password.
SELECT_CREDENTIAL = """
SELECT o.id AS organization_id, o.slug, o.name AS organization_name,
       u.id AS user_id, u.email, u.name, u.role, c.password_hash
FROM organizations o
LEFT JOIN users u ON u.organization_id = o.id AND u.email = $2
LEFT JOIN credentials c ON c.organization_id = u.organization_id AND c.user_id = u.id
WHERE o.slug = $1"""

# Whom a key in force speaks for.
SELECT_KEY_OWNER = """
SELECT o.id AS organization_id, o.slug, o.name AS organization_name,
       u.id AS user_id, u.email, u.name, u.role, k.id AS key_id
FROM api_keys k
JOIN users u ON u.organization_id = k.organization_id AND u.id = k.user_id
JOIN organizations o ON o.id = k.organization_id
WHERE k.key_sha256 = $1 AND k.revoked_at IS NULL"""

INSERT_KEY = """
INSERT INTO api_keys (organization_id, user_id, name, prefix, key_sha256) VALUES ($1, $2, $3, $4, $5)
RETURNING id, created_at"""

# The keys in force, of everybody or of one user.
SELECT_KEYS = """
SELECT id, name, prefix, user_id, created_at FROM api_keys
WHERE organization_id = $1 AND revoked_at IS NULL AND ($2::uuid IS NULL OR user_id = $2)
ORDER BY created_at, id"""

# Revoking again is as good as revoking: whoever was told 503 may repeat it.
REVOKE_KEY = """
UPDATE api_keys SET revoked_at = coalesce(revoked_at, now())
WHERE organization_id = $1 AND id = $2 AND ($3::uuid IS NULL OR user_id = $3)
RETURNING name, prefix, old.revoked_at IS NULL AS just_now"""

INSERT_ORGANIZATION = "INSERT INTO organizations (id, slug, name) VALUES ($1, $2, $3)"
INSERT_USER = "INSERT INTO users (organization_id, email, name, role) VALUES ($1, $2, $3, $4) RETURNING id"
INSERT_CREDENTIAL = "INSERT INTO credentials (organization_id, user_id, password_hash) VALUES ($1, $2, $3)"


class Credential(msgspec.Struct, frozen=True):
    """`user` and `password_hash` are None for an e-mail that nobody in the organization has."""

    organization: Organization
    user: User | None
    password_hash: str | None


class RevokedKey(msgspec.Struct, frozen=True):
    """`just_now`: not revoked before."""

    name: str
    prefix: str
    just_now: bool


async def credential(connection: asyncpg.Connection, *, slug: str, email: str) -> Credential | None:
    row = await connection.fetchrow(SELECT_CREDENTIAL, slug, email)
    if row is None:
        return None
    return Credential(_organization(row), _user(row) if row["user_id"] else None, row["password_hash"])


async def key_owner(connection: asyncpg.Connection, sha256: bytes) -> ResolvedKey | None:
    row = await connection.fetchrow(SELECT_KEY_OWNER, sha256)
    return ResolvedKey(row["key_id"], _user(row), _organization(row)) if row else None


async def insert_key(
    connection: asyncpg.Connection,
    organization_id: uuid.UUID,
    user_id: uuid.UUID,
    *,
    name: str,
    prefix: str,
    sha256: bytes,
    key: str,
) -> ApiKey:
    row = await connection.fetchrow(INSERT_KEY, organization_id, user_id, name, prefix, sha256)
    return ApiKey(row["id"], name, prefix, user_id, row["created_at"], key)


async def select_keys(
    connection: asyncpg.Connection, organization_id: uuid.UUID, user_id: uuid.UUID | None
) -> list[ApiKey]:
    rows = await connection.fetch(SELECT_KEYS, organization_id, user_id)
    return [ApiKey(**dict(row)) for row in rows]


async def revoke_key(
    connection: asyncpg.Connection, organization_id: uuid.UUID, key_id: uuid.UUID, user_id: uuid.UUID | None
) -> RevokedKey | None:
    """None when there is no such key."""
    row = await connection.fetchrow(REVOKE_KEY, organization_id, key_id, user_id)
    return RevokedKey(**dict(row)) if row else None


async def insert_organization(connection: asyncpg.Connection, organization: Organization) -> None:
    await connection.execute(INSERT_ORGANIZATION, organization.id, organization.slug, organization.name)


async def insert_user(
    connection: asyncpg.Connection, organization_id: uuid.UUID, *, email: str, role: Role, password_hash: str
) -> User:
    name = email.partition("@")[0].replace(".", " ").title()
    user_id = await connection.fetchval(INSERT_USER, organization_id, email, name, role)
    await connection.execute(INSERT_CREDENTIAL, organization_id, user_id, password_hash)
    return User(user_id, email, name, role)


def _user(row: asyncpg.Record) -> User:
    return User(row["user_id"], row["email"], row["name"], Role(row["role"]))


def _organization(row: asyncpg.Record) -> Organization:
    return Organization(row["organization_id"], row["slug"], row["organization_name"])

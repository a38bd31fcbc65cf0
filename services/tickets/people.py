"""Organizations, their users, sign-in and API keys."""

import asyncio
import hashlib
import secrets
import uuid

import argon2
import asyncpg
import msgspec
import structlog

from libs.common.identity import Principal
from libs.common.models import Role
from libs.common.people import ApiKey, NewApiKey, Organization, ResolvedKey, SignedIn, SignIn, User
from libs.common.problems import Problem
from services.tickets import store_people
from services.tickets.database import Database, Write

KEY_PREFIX = "rdk_"
_PREFIX_CHARACTERS = 12
# argon2id with the library's RFC 9106 low-memory profile; two at once keep two cores for everybody else's requests.
_hasher = argon2.PasswordHasher()
_hashing = asyncio.Semaphore(2)
# Verified when nobody has the address, so that an unknown user costs the same time as a wrong password.
_NOBODY = _hasher.hash(secrets.token_urlsafe(16))
log = structlog.get_logger()


class SlugTaken(Exception):  # noqa: N818 (it is an outcome)
    """An organization with this slug exists already."""


class NewUser(msgspec.Struct, frozen=True):
    """A user to create, with a password generated for it."""

    email: str
    role: Role
    password: str


async def sign_in(database: Database, request: SignIn) -> SignedIn:
    """Check an e-mail and a password.

    Raises:
        Problem: `invalid_credentials` (401), the same for an unknown organization, user and password.
    """
    found = await store_people.credential(database.identity, slug=request.organization, email=request.email.lower())
    password_hash = found.password_hash if found else _NOBODY
    async with _hashing:
        matches = await asyncio.to_thread(_matches, password_hash, request.password)
    if found is None or not matches:
        raise Problem("invalid_credentials")
    return SignedIn(user=found.user, organization=found.organization)


async def resolve_key(database: Database, sha256: bytes) -> ResolvedKey:
    """Whom the API key with this hash speaks for.

    Raises:
        Problem: `authentication_required` (401) for a key that is unknown or revoked.
    """
    found = await store_people.key_owner(database.identity, sha256)
    if found is None:
        raise Problem("authentication_required", "The API key is not known or has been revoked.")
    return found


async def create_key(database: Database, principal: Principal, new: NewApiKey) -> ApiKey:
    """Make a key that acts as its creator. The key itself is told this once and stored only as a hash."""
    async with database.write(principal.organization_id) as write:
        return await _insert_key(write, principal.organization_id, principal.user_id, new.name)


async def list_keys(database: Database, principal: Principal) -> list[ApiKey]:
    """The keys in force: an admin sees the organization's, others their own."""
    async with database.write(principal.organization_id) as write:
        return await store_people.select_keys(write.connection, principal.organization_id, _owner_filter(principal))


async def revoke_key(database: Database, principal: Principal, key_id: uuid.UUID) -> None:
    """Revoke a key of one's own, or any key of the organization for an admin. Safe to repeat.

    Raises:
        Problem: `key_not_found` (404), also for a key that is another's.
    """
    async with database.write(principal.organization_id) as write:
        if not await store_people.revoke_key(
            write.connection, principal.organization_id, key_id, _owner_filter(principal)
        ):
            raise Problem("key_not_found", f"There is no API key {key_id}.")


async def provision(
    database: Database, *, slug: str, name: str, users: list[NewUser], key_name: str
) -> tuple[Organization, list[User], ApiKey]:
    """Create an organization with its first users and an API key of the first of them.

    Raises:
        SlugTaken: nothing was changed.
    """
    organization = Organization(id=uuid.uuid4(), slug=slug, name=name)
    hashes = [await asyncio.to_thread(_hasher.hash, user.password) for user in users]
    try:
        async with database.write(organization.id) as write:
            await store_people.insert_organization(write.connection, organization)
            created = [
                await store_people.insert_user(
                    write.connection, organization.id, email=user.email, role=user.role, password_hash=hashed
                )
                for user, hashed in zip(users, hashes, strict=True)
            ]
            key = await _insert_key(write, organization.id, created[0].id, key_name)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "organizations_slug_key":
            raise
        raise SlugTaken(slug) from error
    return organization, created, key


async def _insert_key(write: Write, organization_id: uuid.UUID, user_id: uuid.UUID, name: str) -> ApiKey:
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return await store_people.insert_key(
        write.connection,
        organization_id,
        user_id,
        name=name,
        prefix=key[:_PREFIX_CHARACTERS],
        sha256=hashlib.sha256(key.encode()).digest(),
        key=key,
    )


def _owner_filter(principal: Principal) -> uuid.UUID | None:
    return None if principal.role is Role.ADMIN else principal.user_id


def _matches(password_hash: str, password: str) -> bool:
    try:
        return _hasher.verify(password_hash, password)
    except argon2.exceptions.VerifyMismatchError:
        return False

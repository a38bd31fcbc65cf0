"""Organizations, their users, sign-in and API keys."""

import asyncio
import hashlib
import secrets
import uuid

import argon2
import asyncpg
import msgspec
import structlog

from libs.common import background
from libs.common.history import Action, AuditActor
from libs.common.identity import Principal
from libs.common.models import Role
from libs.common.people import ApiKey, NewApiKey, Organization, ResolvedKey, SignedIn, SignIn, User
from libs.common.problems import Problem
from services.tickets import audit, store_people
from services.tickets.database import Database
from services.tickets.idempotency import Attempt, Reply, once

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
    async with database.identity.lend() as connection:
        found = await store_people.credential(connection, slug=request.organization, email=request.email.lower())
    password_hash = found.password_hash if found else None
    async with _hashing:
        # To its end, for a thread cannot be cancelled: while it computes, its place is taken.
        matches = await background.finish(asyncio.to_thread(_matches, password_hash or _NOBODY, request.password))
    if found is None:
        raise Problem("invalid_credentials")
    # For an unknown user as well, so that it costs the same time as a wrong password.
    user = found.user if matches else None
    await _record_sign_in(database, found, succeeded=user is not None)
    if user is None:
        raise Problem("invalid_credentials")
    return SignedIn(user=user, organization=found.organization)


async def _record_sign_in(database: Database, found: store_people.Credential, *, succeeded: bool) -> None:
    user, organization_id = found.user, found.organization.id
    async with database.write(organization_id) as write:
        await audit.record(
            write.connection,
            organization_id,
            audit.signing_in(user) if user and succeeded else audit.UNKNOWN,
            Action.SIGN_IN_SUCCEEDED if succeeded else Action.SIGN_IN_FAILED,
            target_id=user.id if user else None,
        )


async def resolve_key(database: Database, sha256: bytes) -> ResolvedKey:
    """Whom the API key with this hash speaks for.

    Raises:
        Problem: `authentication_required` (401) for a key that is unknown or revoked.
    """
    async with database.identity.lend() as connection:
        found = await store_people.key_owner(connection, sha256)
    if found is None:
        raise Problem("authentication_required", "The API key is not known or has been revoked.")
    return found


async def create_key(database: Database, principal: Principal, new: NewApiKey, attempt: Attempt | None = None) -> Reply:
    """Make a key that acts as its creator, once for an `attempt`. The reply is an `ApiKey`.

    The key itself is told this once and stored only as a hash; an attempt's record of the reply is encrypted.

    Raises:
        Problem: as `once`.
    """

    async def work(connection: asyncpg.Connection) -> Reply:
        actor = audit.acting(principal)
        key = await _insert_key(connection, principal.organization_id, principal.user_id, new.name, actor)
        return Reply.of(key)

    reply, _position = await once(database, principal, attempt, work, secret=True)
    return reply


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
        revoked = await store_people.revoke_key(
            write.connection, principal.organization_id, key_id, _owner_filter(principal)
        )
        if revoked is None:
            raise Problem("key_not_found", f"There is no API key {key_id}.")
        if revoked.just_now:
            details = {"name": revoked.name, "prefix": revoked.prefix}
            actor = audit.acting(principal)
            await audit.record(
                write.connection,
                principal.organization_id,
                actor,
                Action.KEY_REVOKED,
                target_id=key_id,
                details=details,
            )


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
            connection, actor = write.connection, audit.OPERATOR
            await store_people.insert_organization(connection, organization)
            details = {"slug": slug, "name": name}
            await audit.record(
                connection,
                organization.id,
                actor,
                Action.ORGANIZATION_CREATED,
                target_id=organization.id,
                details=details,
            )
            created = []
            for new, hashed in zip(users, hashes, strict=True):
                user = await store_people.insert_user(
                    connection, organization.id, email=new.email, role=new.role, password_hash=hashed
                )
                created.append(user)
                details = {"email": user.email, "role": user.role}
                await audit.record(
                    connection, organization.id, actor, Action.USER_CREATED, target_id=user.id, details=details
                )
            key = await _insert_key(connection, organization.id, created[0].id, key_name, actor)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "organizations_slug_key":
            raise
        raise SlugTaken(slug) from error
    return organization, created, key


async def _insert_key(
    connection: asyncpg.Connection, organization_id: uuid.UUID, user_id: uuid.UUID, name: str, actor: AuditActor
) -> ApiKey:
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    made = await store_people.insert_key(
        connection,
        organization_id,
        user_id,
        name=name,
        prefix=key[:_PREFIX_CHARACTERS],
        sha256=hashlib.sha256(key.encode()).digest(),
        key=key,
    )
    details = {"name": made.name, "prefix": made.prefix}
    await audit.record(connection, organization_id, actor, Action.KEY_CREATED, target_id=made.id, details=details)
    return made


def _owner_filter(principal: Principal) -> uuid.UUID | None:
    return None if principal.role is Role.ADMIN else principal.user_id


def _matches(password_hash: str, password: str) -> bool:
    try:
        return _hasher.verify(password_hash, password)
    except argon2.exceptions.VerifyMismatchError:
        return False

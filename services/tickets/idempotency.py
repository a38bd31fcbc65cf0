"""Creations that may be sent again: the answer is kept with the write, and a retry is given that answer.

The rules of the `Idempotency-Key` header (draft-ietf-httpapi-idempotency-key-header) stand here. A key belongs to one
user of one organization and is kept for 24 hours, hashed.
"""

import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Self

import asyncpg
import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from libs.common.consistency import Position
from libs.common.identity import Principal
from libs.common.problems import Problem
from services.tickets import store_idempotency
from services.tickets.database import Database

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_NONCE_BYTES = 12
_JSON = msgspec.json.Encoder()


class Reply(msgspec.Struct, frozen=True):
    """What a creation is answered with: a status, a body of JSON and headers."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}
    replayed: bool = False

    @classmethod
    def of(cls, value: object, *, status: int = 201, headers: Mapping[str, str] | None = None) -> Self:
        return cls(status, _JSON.encode(value), headers or {})


class Attempt(msgspec.Struct, frozen=True):
    """A request that names an Idempotency-Key. `fingerprint` tells whether another request is the same one."""

    key: str
    fingerprint: bytes

    @classmethod
    def of(cls, key: str | None, method: str, path: str, body: bytes) -> Self | None:
        """None for a request without a key.

        Raises:
            Problem: `invalid_parameter` (400) for a key that is not 1 to 255 visible ASCII characters.
        """
        if key is None:
            return None
        if not _KEY.fullmatch(key):
            raise Problem("invalid_parameter", f"{HEADER} must be 1 to 255 visible ASCII characters.")
        return cls(key, hashlib.sha256(f"{method} {path}\n".encode() + body).digest())

    @property
    def key_sha256(self) -> bytes:
        """All that is stored of the key."""
        return hashlib.sha256(self.key.encode()).digest()

    def sealed(self, body: bytes) -> bytes:
        """`body`, encrypted with a key made of the client's (HKDF, RFC 5869), which whoever reads the database lacks.

        As good as the Idempotency-Key is hard to guess.
        """
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher().encrypt(nonce, body, None)

    def unsealed(self, stored: bytes) -> bytes:
        return self._cipher().decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], None)

    def _cipher(self) -> AESGCM:
        info = b"relaydesk idempotency record"
        return AESGCM(HKDF(SHA256(), length=32, salt=self.fingerprint, info=info).derive(self.key.encode()))


async def once(
    database: Database,
    principal: Principal,
    attempt: Attempt | None,
    work: Callable[[asyncpg.Connection], Awaitable[Reply]],
    *,
    secret: bool = False,
) -> tuple[Reply, Position]:
    """Do `work` in a transaction, once for all requests of a key; the position includes what it wrote.

    The reply is recorded in that transaction, so a retry finds both or neither. What `work` raises is not recorded.
    `secret` replies are encrypted with a key that only the client can make again. Without an `attempt` nothing is
    looked up or recorded.

    Raises:
        Problem: `idempotency_key_in_use` (409) while another request with the key is under way,
            `idempotency_key_reused` (422) for a key that came with another request before.
    """
    async with database.write(principal.organization_id) as write:
        reply = await _recorded(write.connection, principal, attempt, secret=secret) if attempt else None
        if reply is None:
            reply = await work(write.connection)
            if attempt is not None:
                await _record(write.connection, principal, attempt, reply, secret=secret)
    return reply, write.position


async def _recorded(
    connection: asyncpg.Connection, principal: Principal, attempt: Attempt, *, secret: bool
) -> Reply | None:
    """Hold the key until the transaction ends, and look what it was answered with."""
    claim = await store_idempotency.claim(connection, principal, attempt.key_sha256)
    if claim.running:
        detail = f"A request with this {HEADER} is being carried out."
        raise Problem("idempotency_key_in_use", detail, headers={"Retry-After": "1"})
    if claim.record is None:
        return None
    if claim.record.fingerprint != attempt.fingerprint:
        raise Problem("idempotency_key_reused", f"This {HEADER} came with another request in the last 24 hours.")
    body = attempt.unsealed(claim.record.body) if secret else claim.record.body
    return Reply(claim.record.status, body, claim.record.headers, replayed=True)


async def _record(
    connection: asyncpg.Connection, principal: Principal, attempt: Attempt, reply: Reply, *, secret: bool
) -> None:
    body = attempt.sealed(reply.body) if secret else reply.body
    record = store_idempotency.Record(attempt.fingerprint, reply.status, reply.headers, body)
    await store_idempotency.insert(connection, principal, attempt.key_sha256, record)

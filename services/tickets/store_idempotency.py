"""SQL of idempotency records: what creations were answered with."""

from collections.abc import Mapping

import asyncpg
import msgspec

from libs.common.identity import Principal

KEPT_HOURS = 24

# Hold the key until the transaction ends (or learn that somebody else does), and what it was answered with.
CLAIM_KEY = """
SELECT running, fingerprint, status, headers, body
FROM claim_idempotency_key($1, $2, $3, make_interval(hours => $4))"""

INSERT_RECORD = """
INSERT INTO idempotency_records (organization_id, user_id, key_sha256, fingerprint, status, headers, body)
VALUES ($1, $2, $3, $4, $5, $6, $7)"""

_headers = msgspec.json.Decoder(dict[str, str])


class Record(msgspec.Struct, frozen=True):
    """An answer, and the fingerprint of the request it was given to."""

    fingerprint: bytes
    status: int
    headers: Mapping[str, str]
    body: bytes


class Claim(msgspec.Struct, frozen=True):
    """`running`: another transaction holds the key."""

    running: bool
    record: Record | None = None


async def claim(connection: asyncpg.Connection, principal: Principal, key_sha256: bytes) -> Claim:
    row = await connection.fetchrow(CLAIM_KEY, principal.organization_id, principal.user_id, key_sha256, KEPT_HOURS)
    if row["fingerprint"] is None:
        return Claim(row["running"])
    headers = _headers.decode(row["headers"])
    return Claim(row["running"], Record(row["fingerprint"], row["status"], headers, row["body"]))


async def insert(connection: asyncpg.Connection, principal: Principal, key_sha256: bytes, record: Record) -> None:
    await connection.execute(
        INSERT_RECORD,
        principal.organization_id,
        principal.user_id,
        key_sha256,
        record.fingerprint,
        record.status,
        msgspec.json.encode(record.headers).decode(),
        record.body,
    )

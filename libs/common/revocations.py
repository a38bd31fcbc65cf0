"""How a revoked credential is told to whoever holds connections open on its behalf.

The durable Redis has one stream, `revocations`; an entry names the credential (a session's or an API key's id).
"""

from redis.asyncio import Redis

STREAM = "revocations"
FIELD = "credential_id"
LENGTH = 10_000  # approximate; a reader needs the entries of one realtime token's life


async def revoke(redis: "Redis", credential_id: str) -> None:
    """Announce that `credential_id` is not valid any more; its open sockets close within 2 s.

    Raises:
        redis.exceptions.RedisError: when the durable Redis does not take it; the credential's sockets stay open.
    """
    await redis.xadd(STREAM, {FIELD: credential_id}, maxlen=LENGTH, approximate=True)

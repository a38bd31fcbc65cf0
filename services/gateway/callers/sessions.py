"""Sessions in the durable Redis. A cookie holds a random token; Redis knows it by its hash only."""

import datetime as dt
import hashlib
import secrets
import uuid

import msgspec
from redis.asyncio import Redis

from libs.common.people import Organization, SignedIn, User

COOKIE = "relaydesk_session"
_PREFIX = "session:"


class StoredSession(msgspec.Struct, frozen=True):
    """`id` names the session in tokens and revocations, where the cookie's token must not stand."""

    id: uuid.UUID
    user: User
    organization: Organization
    csrf_token: str
    expires_at: dt.datetime


class SessionStore:
    """Every method raises redis.RedisError (or OSError) when Redis does not answer."""

    def __init__(self, redis: Redis, *, hours: float) -> None:
        self._redis = redis
        self._life = dt.timedelta(hours=hours)
        self._decoder = msgspec.json.Decoder(StoredSession)

    async def start(self, signed_in: SignedIn) -> tuple[str, StoredSession]:
        """Begin a session; the first value is the cookie's."""
        token = secrets.token_urlsafe(32)
        session = StoredSession(
            id=uuid.uuid4(),
            user=signed_in.user,
            organization=signed_in.organization,
            csrf_token=secrets.token_urlsafe(24),
            expires_at=dt.datetime.now(dt.UTC) + self._life,
        )
        await self._redis.set(_key(token), msgspec.json.encode(session), ex=self._life)
        return token, session

    async def find(self, token: str) -> StoredSession | None:
        stored = await self._redis.get(_key(token))
        return self._decoder.decode(stored) if stored else None

    async def end(self, token: str) -> StoredSession | None:
        """End the session if there is one; what it was."""
        stored = await self._redis.getdel(_key(token))
        return self._decoder.decode(stored) if stored else None


def _key(token: str) -> str:
    return _PREFIX + hashlib.sha256(token.encode()).hexdigest()

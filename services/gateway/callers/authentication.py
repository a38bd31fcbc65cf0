"""Who is asking: a session cookie or an API key becomes a principal.

What a credential resolves to is remembered for one second, so a revocation holds everywhere within two; the gateway
that takes the revocation forgets at once.
"""

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable

import cachebox
import msgspec
from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import RedisError

from libs.common import revocations
from libs.common.identity import Principal
from libs.common.people import Organization, ResolvedKey, ResolveKey, User
from libs.common.problems import Problem, unavailable
from libs.common.service import LOG_FIELDS
from services.gateway.callers.sessions import COOKIE, SessionStore, StoredSession
from services.gateway.upstreams.upstream import Upstream

KEY_PREFIX = "rdk_"
CSRF_HEADER = "X-CSRF-Token"
REMEMBER_SECONDS = 1.0
_REMEMBERED = 10_000
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_TOKEN_LENGTH = 200


class Caller(msgspec.Struct, frozen=True):
    """A principal and what `GET /api/session` tells of it; `token` is the key or the session cookie's value."""

    principal: Principal
    user: User
    organization: Organization
    token: str
    csrf_token: str | None = None


CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)


class Authenticator:
    def __init__(self, sessions: SessionStore, tickets: Upstream, redis: Redis) -> None:
        self._sessions = sessions
        self._tickets = tickets
        self._redis = redis
        self._remembered: cachebox.LRUCache[str, tuple[float, Caller | None]] = cachebox.LRUCache(_REMEMBERED)
        self._resolved_key = msgspec.json.Decoder(ResolvedKey)

    async def authenticate(self, request: web.Request) -> Caller:
        """The caller of a request.

        Raises:
            Problem: `authentication_required` (401), `csrf_token_invalid` (403) for a session's unsafe request
                without its token, `service_unavailable` (503) when the credential cannot be checked.
        """
        authorization = request.headers.get("Authorization")
        if authorization is not None:
            scheme, _, key = authorization.partition(" ")
            if scheme.lower() != "bearer" or not key.startswith(KEY_PREFIX) or len(key) > _TOKEN_LENGTH:
                raise Problem(
                    "authentication_required",
                    "Authorization must be `Bearer` and an API key.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            caller = await self._remember(key, self._caller_of_key)
        else:
            token = request.cookies.get(COOKIE, "")
            if not token or len(token) > _TOKEN_LENGTH:
                raise Problem(
                    "authentication_required",
                    "Send an API key (Authorization: Bearer …) or sign in at POST /api/session.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            caller = await self._remember(token, self._caller_of_session)
            if caller is not None and request.method not in _SAFE_METHODS:
                sent = request.headers.get(CSRF_HEADER, "")
                if not hmac.compare_digest(sent.encode(), (caller.csrf_token or "").encode()):
                    which = "is not the session's" if sent else "is missing"
                    told = f"{CSRF_HEADER} {which}: GET /api/session tells the csrf_token to send."
                    raise Problem("csrf_token_invalid", told)
        if caller is None:
            raise Problem(
                "authentication_required",
                "The API key or session is not known, has ended or was revoked.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        request[CALLER] = caller
        request[LOG_FIELDS].update(
            organization_id=str(caller.principal.organization_id),
            user_id=str(caller.principal.user_id),
            credential=caller.principal.credential,
        )
        return caller

    def remembered(self, token: str) -> Caller | None:
        """Whose key or session this is, as long as that need not be asked again."""
        known = self._remembered.get(token)
        return known[1] if known is not None and known[0] > time.monotonic() else None

    def was_valid(self, request: web.Request) -> bool:
        """Whether a request's credential was valid when it was last checked here, be that long ago."""
        authorization = request.headers.get("Authorization")
        credential = authorization.partition(" ")[2] if authorization is not None else request.cookies.get(COOKIE, "")
        known = self._remembered.get(credential)
        return known is not None and known[1] is not None

    async def revoke(self, credential_id: str) -> None:
        """Forget a credential here at once and have its open sockets closed.

        Raises:
            Problem: `service_unavailable` (503) when the revocation cannot be announced.
        """
        for key, (_until, caller) in list(self._remembered.items()):
            if caller is not None and caller.principal.credential_id == credential_id:
                self._remembered.pop(key, None)
        try:
            await revocations.revoke(self._redis, credential_id)
        except (RedisError, OSError) as error:
            raise unavailable("The session store") from error

    async def _remember(self, credential: str, resolve: Callable[[str], Awaitable[Caller | None]]) -> Caller | None:
        now = time.monotonic()
        known = self._remembered.get(credential)
        if known is not None and known[0] > now:
            return known[1]
        caller = await resolve(credential)
        self._remembered[credential] = (now + REMEMBER_SECONDS, caller)
        return caller

    async def _caller_of_key(self, key: str) -> Caller | None:
        body = msgspec.json.encode(ResolveKey(hashlib.sha256(key.encode()).hexdigest()))
        answer = await self._tickets.call(
            "POST",
            "/internal/keys/resolve",
            principal=None,
            headers={"Content-Type": "application/json"},
            body=body,
        )
        if answer.status == 401:
            return None
        if answer.status != 200:
            raise unavailable("The tickets service")
        found = self._resolved_key.decode(answer.body)
        principal = _principal(found.user, found.organization, "api_key", str(found.key_id))
        return Caller(principal, found.user, found.organization, key)

    async def _caller_of_session(self, token: str) -> Caller | None:
        try:
            session: StoredSession | None = await self._sessions.find(token)
        except (RedisError, OSError) as error:
            raise unavailable("The session store") from error
        if session is None:
            return None
        principal = _principal(session.user, session.organization, "session", str(session.id))
        return Caller(principal, session.user, session.organization, token, session.csrf_token)


def _principal(user: User, organization: Organization, credential: str, credential_id: str) -> Principal:
    return Principal(
        organization_id=organization.id,
        user_id=user.id,
        name=user.name,
        role=user.role,
        credential=credential,
        credential_id=credential_id,
    )

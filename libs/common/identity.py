"""The signed internal token: how a service tells another who is asking.

Tokens are JWTs with a fixed algorithm, issuer, audience and type (RFC 8725). Every service signs with a key of its
own (Ed25519, RFC 8037) whose `kid` is the service's name; only the gateway may speak for users.
"""

import time
import uuid
from collections.abc import Mapping
from typing import Any

import cachebox
import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OKPKey

from libs.common.models import Role
from libs.common.problems import Problem

ALGORITHM = "Ed25519"  # RFC 9864
INTERNAL_TYPE = "relaydesk-internal+jwt"
REALTIME_TYPE = "relaydesk-realtime+jwt"
INTERNAL_SECONDS = 60
REALTIME_SECONDS = 600
HEADER = "Relaydesk-Principal"
_REUSE_SECONDS = INTERNAL_SECONDS / 2
_LEEWAY_SECONDS = 5
_SIGNING_KEY = "INTERNAL_SIGNING_KEY must be a private Ed25519 JWK with a kid"


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking: a user by session or API key, or a service on its own behalf.

    `credential_id` names the session or key, so that revoking it can be told to open sockets.
    """

    organization_id: uuid.UUID
    user_id: uuid.UUID
    name: str
    role: Role
    credential: str
    credential_id: str


class Signer:
    """Signs tokens with this service's private key.

    Raises:
        ValueError: for a key that is not a private Ed25519 JWK with a `kid`.
    """

    def __init__(self, private_jwk: str) -> None:
        try:
            self._key = OKPKey.import_key(msgspec.json.decode(private_jwk))
        except (JoseError, LookupError, TypeError, ValueError) as error:
            raise ValueError(_SIGNING_KEY) from error
        if not self._key.is_private or not self._key.kid:
            raise ValueError(_SIGNING_KEY)
        self.service: str = self._key.kid
        self._made: cachebox.LRUCache[tuple[str, str], tuple[float, str]] = cachebox.LRUCache(10_000)

    def principal_token(self, principal: Principal, audience: str) -> str:
        """A token for `audience` (a service's name) that speaks for `principal`."""
        return self._internal_token(
            audience, f"{principal.credential_id}:{principal.user_id}:{principal.role}", principal
        )

    def service_token(self, audience: str) -> str:
        """A token by which this service speaks for itself."""
        return self._internal_token(audience, "", None)

    def _internal_token(self, audience: str, subject: str, principal: Principal | None) -> str:
        """Signing costs 0.1 ms, so a token is used again for half of its 60 seconds."""
        now = time.monotonic()
        made = self._made.get((audience, subject))
        if made is not None and made[0] > now:
            return made[1]
        token = self._sign(INTERNAL_TYPE, audience, INTERNAL_SECONDS, principal=principal)
        self._made[(audience, subject)] = (now + _REUSE_SECONDS, token)
        return token

    def realtime_token(self, principal: Principal) -> tuple[str, int]:
        """A token for Socket.IO clients and the UNIX time at which it ends (600 seconds from now)."""
        return (
            self._sign(REALTIME_TYPE, "notifier", REALTIME_SECONDS, principal=principal),
            int(time.time()) + REALTIME_SECONDS,
        )

    def _sign(self, token_type: str, audience: str, seconds: int, *, principal: Principal | None) -> str:
        now = int(time.time())
        claims: dict[str, Any] = {"iss": self.service, "aud": audience, "iat": now, "exp": now + seconds}
        if principal is not None:
            claims["sub"] = str(principal.user_id)
            claims["principal"] = msgspec.to_builtins(principal)
        header = {"alg": ALGORITHM, "typ": token_type, "kid": self.service}
        return jwt.encode(header, claims, self._key, algorithms=[ALGORITHM])


class Verifier:
    """Checks tokens that other services signed.

    Raises:
        ValueError: for a key set that cannot be read.
    """

    def __init__(self, trusted_jwks: str, *, audience: str) -> None:
        try:
            keys: Mapping[str, Any] = msgspec.json.decode(trusted_jwks)
            self._keys = KeySet.import_key_set({"keys": keys["keys"]})
        except (JoseError, LookupError, TypeError, ValueError) as error:
            raise ValueError("INTERNAL_TRUSTED_KEYS must be a JWKS") from error
        self._audience = audience
        self._verified: cachebox.LRUCache[str, tuple[float, Principal | None]] = cachebox.LRUCache(10_000)

    def principal(self, token: str | None) -> Principal:
        """The user the gateway speaks for.

        Raises:
            Problem: `authentication_required` (401) for a missing, forged, expired or misdirected token.
        """
        principal = self._internal(token, issuers={"gateway"})
        if principal is None:
            raise _refused("it names no user")
        return principal

    def service(self, token: str | None) -> None:
        """Accept a service that speaks for itself: a user's token opens nothing that is for services only.

        Raises:
            Problem: `authentication_required` (401).
        """
        if self._internal(token, issuers=None) is not None:
            raise _refused("it speaks for a user")

    def realtime(self, token: str | None) -> tuple[Principal, int]:
        """The principal of a Socket.IO client's token and the UNIX time at which the token ends.

        Raises:
            Problem: `authentication_required` (401).
        """
        claims = self._verify(token, REALTIME_TYPE, issuers={"gateway"})
        return msgspec.convert(claims["principal"], Principal), int(claims["exp"])

    def _internal(self, token: str | None, *, issuers: set[str] | None) -> Principal | None:
        known = self._verified.get(token) if token else None
        if known is not None and token is not None and known[0] > time.time():
            if issuers is not None and known[1] is None:
                raise _refused("it names no user")
            return known[1]
        claims = self._verify(token, INTERNAL_TYPE, issuers)
        principal = (
            msgspec.convert(claims["principal"], Principal)
            if "principal" in claims and claims["iss"] == "gateway"
            else None
        )
        self._verified[token or ""] = (float(claims["exp"]), principal)
        return principal

    def _verify(self, token: str | None, token_type: str, issuers: set[str] | None) -> dict[str, Any]:
        if not token:
            raise _refused("it is missing")
        try:
            decoded = jwt.decode(token, self._keys, algorithms=[ALGORITHM])
        except (JoseError, ValueError) as error:
            raise _refused("its signature cannot be verified") from error
        claims = decoded.claims
        now = time.time()
        kid = decoded.header.get("kid")
        if decoded.header.get("typ") != token_type or claims.get("aud") != self._audience:
            raise _refused("it was made for something else")
        if claims.get("iss") != kid or (issuers is not None and kid not in issuers):
            raise _refused("its issuer may not issue it")
        if not (now - INTERNAL_SECONDS - REALTIME_SECONDS < claims.get("iat", 0) <= now + _LEEWAY_SECONDS):
            raise _refused("its time of issue is not plausible")
        if claims.get("exp", 0) <= now:
            raise _refused("it has expired")
        return claims


def _refused(reason: str) -> Problem:
    return Problem("authentication_required", f"The token was refused: {reason}.")

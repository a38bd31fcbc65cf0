"""`/api/session`, `/api/keys` and `/api/realtime/token`: credentials of every kind."""

import datetime as dt

import msgspec
from aiohttp import web
from redis.exceptions import RedisError

from libs.common.identity import Signer
from libs.common.people import RealtimeToken, Session, SignedIn, SignIn, WhoAmI
from libs.common.problems import Problem, decode_body, unavailable
from libs.common.service import json_response, read_json_body
from services.gateway.callers.authentication import Authenticator
from services.gateway.callers.sessions import COOKIE, SessionStore
from services.gateway.edge.proxies import CLIENT
from services.gateway.upstreams.forwarding import forward, path_id, relayed
from services.gateway.upstreams.upstream import Upstream

_sign_in = msgspec.json.Decoder(SignIn)
_signed_in = msgspec.json.Decoder(SignedIn)
_NO_STORE = {"Cache-Control": "no-store"}


class SessionRoutes:
    def __init__(
        self,
        authenticator: Authenticator,
        sessions: SessionStore,
        tickets: Upstream,
        signer: Signer,
        *,
        notifier_public_url: str,
        cookie_secure: bool,
    ) -> None:
        self._authenticator = authenticator
        self._sessions = sessions
        self._tickets = tickets
        self._signer = signer
        self._notifier_public_url = notifier_public_url
        self._cookie_secure = cookie_secure

    async def sign_in(self, request: web.Request) -> web.Response:
        """A new session; the one the request came with, if any, ends (no session fixation)."""
        body = decode_body(_sign_in, await read_json_body(request))
        answer = await self._tickets.call(
            "POST",
            "/internal/sign-in",
            principal=None,
            headers={"Content-Type": "application/json"},
            body=msgspec.json.encode(body),
        )
        if answer.status != 200:
            return relayed(answer)
        try:
            old = request.cookies.get(COOKIE)
            ended = await self._sessions.end(old) if old else None
            if ended is not None:
                await self._authenticator.revoke(str(ended.id))
            token, session = await self._sessions.start(_signed_in.decode(answer.body))
        except (RedisError, OSError) as error:
            raise unavailable("The session store") from error
        response = json_response(
            Session(session.user, session.organization, session.csrf_token, session.expires_at),
            status=201,
            headers=dict(_NO_STORE),
        )
        response.set_cookie(
            COOKIE,
            token,
            path="/",
            max_age=int((session.expires_at - dt.datetime.now(dt.UTC)).total_seconds()),
            httponly=True,
            secure=self._cookie_secure or request[CLIENT].scheme == "https",
            samesite="Lax",
        )
        return response

    async def who_am_i(self, request: web.Request) -> web.Response:
        caller = await self._authenticator.authenticate(request)
        body = WhoAmI(caller.user, caller.organization, caller.principal.credential, caller.csrf_token)
        return json_response(body, headers=dict(_NO_STORE))

    async def sign_out(self, request: web.Request) -> web.Response:
        caller = await self._authenticator.authenticate(request)
        if caller.principal.credential != "session":
            raise Problem("permission_denied", "Only a session can be signed out; API keys are revoked.")
        try:
            await self._sessions.end(caller.token)
        except (RedisError, OSError) as error:
            raise unavailable("The session store") from error
        await self._authenticator.revoke(caller.principal.credential_id)
        response = web.Response(status=204)
        response.del_cookie(COOKIE, path="/", httponly=True, secure=self._cookie_secure, samesite="Lax")
        return response

    async def keys(self, request: web.Request) -> web.Response:
        """Create and list API keys."""
        caller = await self._authenticator.authenticate(request)
        return relayed(await forward(request, caller.principal, self._tickets))

    async def revoke_key(self, request: web.Request) -> web.Response:
        caller = await self._authenticator.authenticate(request)
        answer = await forward(request, caller.principal, self._tickets)
        if answer.status < 300:
            await self._authenticator.revoke(path_id(request, "key_id"))
        return relayed(answer)

    async def realtime_token(self, request: web.Request) -> web.Response:
        caller = await self._authenticator.authenticate(request)
        token, expires = self._signer.realtime_token(caller.principal)
        body = RealtimeToken(token, dt.datetime.fromtimestamp(expires, dt.UTC), self._notifier_public_url)
        return json_response(body, headers=dict(_NO_STORE))

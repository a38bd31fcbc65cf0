"""HTTP of sign-in and API keys: parse, call, render."""

import uuid
from collections.abc import Callable

import msgspec
from aiohttp import web

from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Verifier
from libs.common.people import ApiKeyList, NewApiKey, ResolveKey, SignIn
from libs.common.problems import Problem, decode_body
from libs.common.service import json_response, read_json_body
from services.tickets import people
from services.tickets.database import Database
from services.tickets.replies import attempt_of, reply_response

_sign_in = msgspec.json.Decoder(SignIn)
_resolve_key = msgspec.json.Decoder(ResolveKey)
_new_key = msgspec.json.Decoder(NewApiKey)


class PeopleRoutes:
    """`/internal` is for the gateway itself, before there is a principal; `/api/keys` acts for one."""

    def __init__(self, database: Callable[[], Database], verifier: Verifier) -> None:
        self._database = database
        self._verifier = verifier

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_post("/internal/sign-in", self.sign_in)
        router.add_post("/internal/keys/resolve", self.resolve_key)
        router.add_post("/api/keys", self.create_key)
        router.add_get("/api/keys", self.list_keys, allow_head=False)
        router.add_delete("/api/keys/{key_id}", self.revoke_key)

    async def sign_in(self, request: web.Request) -> web.Response:
        self._verifier.service(request.headers.get(PRINCIPAL_HEADER))
        body = decode_body(_sign_in, await read_json_body(request))
        return json_response(await people.sign_in(self._database(), body))

    async def resolve_key(self, request: web.Request) -> web.Response:
        self._verifier.service(request.headers.get(PRINCIPAL_HEADER))
        body = decode_body(_resolve_key, await read_json_body(request))
        return json_response(await people.resolve_key(self._database(), bytes.fromhex(body.sha256)))

    async def create_key(self, request: web.Request) -> web.Response:
        principal = self._verifier.principal(request.headers.get(PRINCIPAL_HEADER))
        body = await read_json_body(request)
        new = decode_body(_new_key, body)
        return reply_response(await people.create_key(self._database(), principal, new, attempt_of(request, body)))

    async def list_keys(self, request: web.Request) -> web.Response:
        principal = self._verifier.principal(request.headers.get(PRINCIPAL_HEADER))
        return json_response(ApiKeyList(await people.list_keys(self._database(), principal)))

    async def revoke_key(self, request: web.Request) -> web.Response:
        principal = self._verifier.principal(request.headers.get(PRINCIPAL_HEADER))
        text = request.match_info["key_id"]
        try:
            key_id = uuid.UUID(text)
        except ValueError as error:
            raise Problem("key_not_found", f"There is no API key {text[:64]!r}.") from error
        await people.revoke_key(self._database(), principal, key_id)
        return web.Response(status=204)

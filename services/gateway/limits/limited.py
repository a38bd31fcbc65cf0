"""Where requests meet the limits: after the credential has been checked, before a password is."""

import functools
import ipaddress
from collections.abc import Sequence

import msgspec
from aiohttp import web
from redis.asyncio import Redis

from libs.common.people import SignIn
from libs.common.problems import Problem, decode_body
from libs.common.service import LOG_FIELDS, Handler, read_json_body
from services.gateway.callers.authentication import CALLER, Authenticator, Caller
from services.gateway.callers.sessions import SessionStore
from services.gateway.edge.proxies import CLIENT
from services.gateway.limits.gcra import Told
from services.gateway.limits.limits import Limits
from services.gateway.upstreams.upstream import Upstream

TOLD: web.RequestKey[Told] = web.RequestKey("told", Told)
ROWS_A_REQUEST = 10
# Whoever has to end a credential that uses up the organization's limit must not be kept from it by that limit.
_OF_CREDENTIALS = frozenset({"/api/session", "/api/keys", "/api/keys/{key_id}"})
_sign_in = msgspec.json.Decoder(SignIn)


class _Report(msgspec.Struct, frozen=True):
    """A bulk request's answer, of which only the number of rows matters here."""

    results: Sequence[msgspec.Raw]


_report = msgspec.json.Decoder(_Report)


class LimitedAuthenticator(Authenticator):
    """Authenticates within the limits: of the address where no valid credential is shown, else of the credential."""

    def __init__(self, sessions: SessionStore, tickets: Upstream, redis: Redis, limits: Limits) -> None:
        super().__init__(sessions, tickets, redis)
        self._limits = limits

    async def authenticate(self, request: web.Request) -> Caller:
        """The caller of a request.

        Raises:
            Problem: `rate_limited` (429), and what `Authenticator.authenticate` raises.
        """
        try:
            # Others at the address of a valid credential cannot lock it out.
            if not self.was_valid(request):
                self._limits.refuse(self._limits.of_address(address_of(request)))
            try:
                caller = await super().authenticate(request)
            except Problem as problem:
                if problem.status == 401:
                    self._limits.charge(self._limits.of_address(address_of(request)), 1)
                raise
            credential_only = request.method != "POST" and _route(request) in _OF_CREDENTIALS
            of = self._limits.of_credential if credential_only else self._limits.of_principal
            request[TOLD] = await self._limits.admit(of(caller.principal))
        except Problem as problem:
            _note(request, problem)
            raise
        return caller


class LimitedHandlers:
    """Wraps handlers whose requests cost something else than one."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def sign_in(self, handler: Handler) -> Handler:
        """Each attempt is taken from its address and its account; one that was no wrong password is given back."""

        async def limited(request: web.Request) -> web.StreamResponse:
            asked: SignIn = decode_body(_sign_in, await read_json_body(request))
            buckets = self._limits.of_sign_in(address_of(request), asked.organization, asked.email)
            try:
                request[TOLD] = await self._limits.admit(buckets)
            except Problem as problem:
                _note(request, problem)
                raise
            try:
                response = await handler(request)
            except Problem:
                self._limits.charge(buckets, -1)
                raise
            if response.status != 401:
                self._limits.charge(buckets, -1)
            return response

        return limited

    def bulk(self, handler: Handler) -> Handler:
        """Every ten rows of an answered bulk request cost as much as a request, beside the request itself."""

        async def limited(request: web.Request) -> web.StreamResponse:
            response = await handler(request)
            if response.status < 300 and isinstance(response, web.Response) and isinstance(response.body, bytes):
                rows = len(_report.decode(response.body).results)
                self._limits.charge(self._limits.of_principal(request[CALLER].principal), rows // ROWS_A_REQUEST)
            return response

        return limited


@web.middleware
async def tell_limits(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Put `RateLimit` and `RateLimit-Policy` on whatever the answer is."""
    try:
        response = await handler(request)
    except Problem as problem:
        if (told := request.get(TOLD)) is not None:
            problem.headers |= told.headers
        raise
    if (told := request.get(TOLD)) is not None and not response.prepared:
        response.headers.update(told.headers)
    return response


def address_of(request: web.Request) -> str:
    """What stands for the client: its IPv4 address, or the first 64 bits of its IPv6 address."""
    client = request.get(CLIENT)
    return network_of(client.address if client is not None else request.remote or "")


@functools.lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """An IPv4 address as it is, an IPv6 address without what one customer may choose freely."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else ""


def _note(request: web.Request, problem: Problem) -> None:
    if problem.status == 429:
        request[LOG_FIELDS]["limited"] = True

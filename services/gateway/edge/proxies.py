"""Who a request really came from, when it came through proxies that are trusted.

What a header says of it is believed as far as a trusted proxy has written it: from the right, up to the first address
that is no trusted proxy's. The rest was written by whoever asked.
"""

import functools
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

from aiohttp import hdrs, web
from multidict import CIMultiDictProxy

from libs.common.service import LOG_FIELDS, Handler

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
FORWARDED = "forwarded"
X_FORWARDED = "x-forwarded"
_CLIENTS = 4096  # of which what was found out is remembered


class Client(NamedTuple):
    """`scheme` is what the client used: `http` or `https`."""

    address: str
    scheme: str


CLIENT: web.RequestKey[Client] = web.RequestKey("client", Client)


def client_address(request: web.Request) -> str:
    """The address a request came from: what limits count by and the log tells."""
    return request[CLIENT].address


def network(text: str) -> Network:
    """A network such as 10.0.0.0/8, or one address."""
    return ipaddress.ip_network(text)


class TrustedProxies:
    """Reads `Forwarded` (RFC 7239) or `X-Forwarded-For` and `-Proto`, whichever the proxies write.

    Never both: a proxy passes the one on that it does not know, as the client wrote it.
    """

    def __init__(self, networks: Sequence[Network], *, header: str = X_FORWARDED) -> None:
        self._networks = tuple(networks)
        self._forwarded = header == FORWARDED
        self._found = functools.lru_cache(_CLIENTS)(self._find)

    def client(self, peer: str, headers: CIMultiDictProxy[str]) -> Client:
        """Who asks with these headers, over a connection from the address `peer`."""
        if not self._networks:
            return self._found(peer, "", "")
        if self._forwarded:
            return self._found(peer, ",".join(headers.getall(hdrs.FORWARDED, ())), "")
        return self._found(
            peer,
            ",".join(headers.getall(hdrs.X_FORWARDED_FOR, ())),
            ",".join(headers.getall(hdrs.X_FORWARDED_PROTO, ())),
        )

    def _find(self, peer: str, forwarded: str, protocols: str) -> Client:
        if not self._trusts(peer):
            return Client(peer, "http")
        hops = _elements(forwarded) if self._forwarded else _pairs(forwarded, protocols)
        address, scheme = peer, "http"
        for hop, told in reversed(hops):
            scheme = told or scheme
            if hop is None:
                break
            address = hop
            if not self._trusts(hop):
                break
        return Client(address, scheme)

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in trusted for trusted in self._networks)


def note_client(proxies: TrustedProxies):  # type: ignore[no-untyped-def]  # noqa: ANN201 (aiohttp's middleware type)
    """The middleware that finds out who asks, before anybody wants to know."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        client = proxies.client(request.remote or "", request.headers)
        request[CLIENT] = client
        request[LOG_FIELDS]["client"] = client.address
        return await handler(request)

    return middleware


def _pairs(addresses: str, protocols: str) -> list[tuple[str | None, str]]:
    """X-Forwarded-For and X-Forwarded-Proto: of the second there may be one, of the nearest proxy."""
    if not addresses.strip():
        return [(None, _scheme(protocols.rpartition(",")[2]))] if protocols else []
    hops = [_address(item) for item in addresses.split(",")]
    schemes = [_scheme(item) for item in protocols.split(",")]
    if len(schemes) != len(hops):
        schemes = [schemes[-1]] * len(hops)
    return list(zip(hops, schemes, strict=True))


def _elements(forwarded: str) -> list[tuple[str | None, str]]:
    """The elements of Forwarded; one that cannot be read has no address and ends the walk."""
    if not forwarded.strip():
        return []
    return [_element(element) for element in _split(forwarded, ",")]


def _element(element: str) -> tuple[str | None, str]:
    address, scheme = None, ""
    for pair in _split(element, ";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            address = _address(value)
        elif name.strip().lower() == "proto":
            scheme = _scheme(value)
    return address, scheme


def _split(text: str, separator: str) -> list[str]:
    """Split outside of quotes."""
    parts = [""]
    quoted = False
    for character in text:
        if character == '"':
            quoted = not quoted
        if character == separator and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _address(text: str) -> str | None:
    """The IP address of a node (RFC 7239, section 6), without its port; None for `unknown`, `_names` and nonsense."""
    text = text.strip().strip('"').strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _scheme(text: str) -> str:
    text = text.strip().strip('"').strip().lower()
    return text if text in {"http", "https"} else ""

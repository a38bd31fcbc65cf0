"""Requests that two servers in a row could understand differently, which is what request smuggling lives on.

llhttp, aiohttp's parser, refuses conflicting and malformed lengths, bad chunks, folded and bare-LF lines, control
characters and a second Host. What it lets pass and no client of ours sends is refused here.
"""

import re

from aiohttp import HttpVersion11, hdrs
from aiohttp.http import RawRequestMessage

# uri-host [":" port] of RFC 9112, section 3.2, with all that RFC 3986 allows in a host
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[A-Fa-f0-9:.]+\])(?::[0-9]{0,5})?")
_DOT_SEGMENTS = frozenset({".", ".."})
_WEBSOCKET = "websocket"


def is_host(text: str) -> bool:
    """Whether a Host header names one host."""
    return _HOST.fullmatch(text) is not None


def fault(message: RawRequestMessage) -> str | None:
    """What is wrong with a request's head, its Host excepted; None if nothing is.

    The absolute form is taken, as RFC 9112, section 3.2.2 demands, unless its authority is another than the Host that
    a server in front may have looked at.
    """
    path = message.path
    if path[:1] != "/":
        path = _path_of(path, message.headers.get(hdrs.HOST, ""))
    if path[:1] != "/" or (message.upgrade and message.method == "CONNECT"):
        return "The target must be a path."
    if "#" in path or "\\" in path:
        return "The target has a character that no path has."
    if "/." in path and not _DOT_SEGMENTS.isdisjoint(path.partition("?")[0].split("/")):
        return "The target has dot segments."
    if hdrs.TRANSFER_ENCODING in message.headers:
        codings = message.headers.getall(hdrs.TRANSFER_ENCODING)
        if message.version < HttpVersion11 or len(codings) != 1 or codings[0].lower() != "chunked":
            return "The only transfer coding is chunked, of HTTP/1.1."
    return None


def _path_of(target: str, host: str) -> str:
    """The path of a target in absolute form; the target itself where it is none of this host's."""
    scheme, separator, rest = target.partition("://")
    authority, slash, path = rest.partition("/")
    ours = bool(separator) and scheme.lower() in {"http", "https"} and authority.lower() == host.lower() and host
    return slash + path if ours else target


def loses_what_follows(message: RawRequestMessage) -> bool:
    """Whether aiohttp drops bytes behind a request to upgrade: for the protocol, if it is one it does not speak."""
    return message.headers.get(hdrs.UPGRADE, "").lower() != _WEBSOCKET

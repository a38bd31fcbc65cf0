"""Content codings: which one a client takes best, and bodies in it (RFC 9110, section 12.5.3)."""

import functools
import gzip

import brotli

# Shorter bodies fit one packet as they are.
SHORTEST = 1024
IDENTITY = "identity"
CODINGS = ("br", "gzip")
_GZIP_LEVEL = 6
_BROTLI_QUALITY = 5


@functools.lru_cache(maxsize=256)  # browsers send a handful of them
def coding_of(accept_encoding: str) -> str:
    """`br`, `gzip` or `identity`: what the client likes best, of equals what is shortest."""
    weights = {}
    for item in accept_encoding.split(","):
        name, _, parameter = item.strip().lower().partition(";")
        weights[name.strip()] = _weight(parameter)
    offered = [(weights.get(name, weights.get("*", 0.0)), name) for name in CODINGS]
    best, name = max(offered, key=lambda offer: offer[0])
    return name if best > 0 and best >= weights.get(IDENTITY, 0.0) else IDENTITY


def coding_for(body: bytes, accept_encoding: str | None) -> str:
    """The content coding in which a client is given a body."""
    return IDENTITY if accept_encoding is None or len(body) < SHORTEST else coding_of(accept_encoding)


def encoded(body: bytes, coding: str) -> bytes:
    """`body` in a coding of `coding_of`."""
    if coding == "br":
        return bytes(brotli.compress(body, quality=_BROTLI_QUALITY))
    if coding == "gzip":
        return gzip.compress(body, _GZIP_LEVEL, mtime=0)
    return body


def _weight(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0

"""Requests that two servers could understand differently: refused before any service hears of them."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from infra.local.stack import Stack
from tests.support.desk import problem
from tests.support.processes import TestedService, running_service
from tests.support.raw_http import Client, Upstream, connection, noting_upstream

SIGN_IN = b'{"organization": "o", "email": "e", "password": "p"}'
POST = b"POST /api/session HTTP/1.1\r\nHost: desk\r\nContent-Type: application/json\r\n"
GET = b"GET /api/tickets HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer rdk_one\r\n"
# What would be smuggled: were it taken for a request of its own, the tickets service would be asked about its key.
NEXT = b"GET /api/tickets HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer rdk_smuggled\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b"%x\r\n" % len(SIGN_IN) + SIGN_IN + b"\r\n0\r\n\r\n"

LENGTHS = {
    "two lengths": b"Content-Length: 52\r\nContent-Length: 5\r\n",
    "the same length twice": b"Content-Length: 52\r\nContent-Length: 52\r\n",
    "a list of lengths": b"Content-Length: 52, 52\r\n",
    "a length with a sign": b"Content-Length: +52\r\n",
    "a negative length": b"Content-Length: -52\r\n",
    "a hexadecimal length": b"Content-Length: 0x34\r\n",
    "a length with a blank": b"Content-Length: 5 2\r\n",
    "an empty length": b"Content-Length: \r\n",
    "a length beyond 64 bits": b"Content-Length: 99999999999999999999999\r\n",
    "a blank before the colon": b"Content-Length : 52\r\n",
}
CODINGS = {
    "a length and chunked": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    "chunked and a length": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "chunked is not the last": b"Transfer-Encoding: chunked, identity\r\n",
    "another coding before chunked": b"Transfer-Encoding: gzip, chunked\r\n",
    "identity": b"Transfer-Encoding: identity\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n",
    "a quoted coding": b'Transfer-Encoding: "chunked"\r\n',
    "a control character": b"Transfer-Encoding: \x0bchunked\r\n",
    "no coding": b"Transfer-Encoding: \r\n",
    "a blank before the colon": b"Transfer-Encoding : chunked\r\n",
    "a folded line": b"Transfer-Encoding:\r\n chunked\r\n",
}
CHUNKS = {
    "no number": b"zz\r\nab\r\n0\r\n\r\n",
    "a negative size": b"-2\r\nab\r\n0\r\n\r\n",
    "a size with 0x": b"0x2\r\nab\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"fffffffffffffffff\r\nab\r\n0\r\n\r\n",
    "no size": b"\r\nab\r\n0\r\n\r\n",
    "a blank before the size": b" 2\r\nab\r\n0\r\n\r\n",
    "a blank behind the size": b"2 \r\nab\r\n0\r\n\r\n",
    "a bare LF behind the size": b"2\nab\r\n0\r\n\r\n",
    "a bare LF behind the chunk": b"2\r\nab\n0\r\n\r\n",
    "a bare LF in an extension": b"2;a\nb\r\nab\r\n0\r\n\r\n",
    "a bare CR in an extension": b"2;a\rb\r\nab\r\n0\r\n\r\n",
    "a chunk longer than its size": b"2\r\nabc\r\n0\r\n\r\n",
    "a chunk shorter than its size": b"4\r\nab\r\n0\r\n\r\n",
    "a length in the trailer": b"2\r\nab\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a trailer without end": b"2\r\nab\r\n0\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
}
HEADS = {
    "a folded line": GET + b"X: 1\r\n 2\r\n\r\n",
    "a fold at the start": b"GET /api/tickets HTTP/1.1\r\n Host: desk\r\n\r\n",
    "bare LF": GET.replace(b"\r\n", b"\n") + b"\n",
    "one bare LF": GET + b"A: b\nX: 1\r\n\r\n",
    "a bare LF at the end": GET + b"\n",
    "a bare CR": GET + b"A: b\rX: 1\r\n\r\n",
    "NUL in a value": GET + b"X: a\x00b\r\n\r\n",
    "a control character in a value": GET + b"X: a\x01b\r\n\r\n",
    "NUL in a name": GET + b"X\x00: ab\r\n\r\n",
    "a blank in a name": GET + b"X Y: ab\r\n\r\n",
    "no name": GET + b": ab\r\n\r\n",
    "no colon": GET + b"XY\r\n\r\n",
    "130 headers": GET + b"".join(b"X-%d: 1\r\n" % number for number in range(130)) + b"\r\n",
    "a long target": GET.replace(b"tickets", b"tickets?q=" + b"x" * 9000) + b"\r\n",
    "a long value": GET + b"X: " + b"x" * 9000 + b"\r\n\r\n",
    "a long name": GET + b"x" * 9000 + b": 1\r\n\r\n",
    "chunked in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + BODY,
    "HTTP/0.9": b"GET /api/tickets\r\n\r\n",
    "HTTP/1.2": GET.replace(b"1.1", b"1.2") + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "more after Connection: close": GET + b"Connection: close\r\n\r\n",
}
HOSTS = {
    "no host": b"GET /api/tickets HTTP/1.1\r\nAuthorization: Bearer rdk_one\r\n\r\n",
    "two hosts": GET + b"Host: other\r\n\r\n",
    "the same host twice": GET + b"Host: desk\r\n\r\n",
    **{
        f"the host {host.decode()!r}": GET.replace(b"desk", host) + b"\r\n"
        for host in (b"a, b", b"a b", b"a/b", b"a@b", b"a:b", b"a?b", b"a#b", b"[::1", b"a\\b", b"\xc3\xa4")
    },
}
TARGETS = {
    target.decode(): GET.replace(b"/api/tickets", target, 1) + b"\r\n"
    for target in (
        b"http://desk/api/../tickets",
        b"http://desk:81/api/tickets",
        b"http://desk@other/api/tickets",
        b"http://other/api/tickets",
        b"ftp://other/api/tickets",
        b"api/tickets",
        b"desk:80",
        b"*",
        b"/api/tickets#fragment",
        b"/api/tickets\\..",
        b"/api/../api/tickets",
        b"/api/./tickets",
        b"/..",
        b"/api/tickets/..?a=b",
        b"/api/ tickets",
        b"/api/\x01tickets",
        b"/api\ttickets",
    )
} | {
    "CONNECT a host": b"CONNECT desk:443 HTTP/1.1\r\nHost: desk\r\n\r\n",
    "CONNECT a path": b"CONNECT /api/tickets HTTP/1.1\r\nHost: desk\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: desk\r\n\r\n",
}
REFUSED = {
    **{f"length: {name}": POST + lines + b"\r\n" + SIGN_IN for name, lines in LENGTHS.items()},
    **{f"coding: {name}": POST + lines + b"\r\n" + BODY for name, lines in CODINGS.items()},
    **{f"chunk: {name}": CHUNKED + body for name, body in CHUNKS.items()},
    **{f"head: {name}": head for name, head in HEADS.items()},
    **{f"host: {name}": head for name, head in HOSTS.items()},
    **{f"target: {name}": head for name, head in TARGETS.items()},
}
# Not refused: an id of this form is looked up nowhere, for it is no UUID.
IDS = ("..%2f..%2finternal%2fsign-in", "%2e%2e%2f", "..%5c..%5cinternal", "%2e%2e", "..;", "%252e%252e%252f", "%00")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def upstream() -> AsyncIterator[Upstream]:
    async with noting_upstream() as noting:
        yield noting


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(
    stack: Stack, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TestedService]:
    log = tmp_path_factory.mktemp("framing") / "gateway.log"
    urls = dict.fromkeys(("GATEWAY_TICKETS_URL", "GATEWAY_SEARCH_URL", "GATEWAY_NOTIFIER_URL"), upstream.url)
    limits = dict.fromkeys(("GATEWAY_LIMIT_ADDRESS", "GATEWAY_LIMIT_SIGN_IN", "GATEWAY_LIMIT_ACCOUNT"), "0")
    async with running_service(stack, "gateway", log, script=(), **urls, **limits) as service:
        yield service
        assert "rdk_smuggled" not in log.read_text()
        assert "Traceback" not in log.read_text()


@pytest_asyncio.fixture(loop_scope="session")
async def client(gateway: TestedService, upstream: Upstream) -> AsyncIterator[Client]:
    upstream.asked.clear()
    async with connection(gateway.port) as opened:
        yield opened


async def is_refused(client: Client, upstream: Upstream) -> None:
    reply = await client.reply()
    assert problem(reply) == (400, "malformed_request")
    assert reply.headers["connection"] == "close"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert await client.rest() == b"", "one answer, and the connection ends"
    assert upstream.asked == []


@pytest.mark.parametrize("request_bytes", REFUSED.values(), ids=REFUSED)
async def test_an_ambiguous_request_ends_its_connection(
    client: Client, upstream: Upstream, request_bytes: bytes
) -> None:
    await client.send(request_bytes + NEXT)
    await is_refused(client, upstream)


@pytest.mark.parametrize("body", CHUNKS.values(), ids=CHUNKS)
async def test_so_does_a_bad_chunk_for_which_a_handler_waits(client: Client, upstream: Upstream, body: bytes) -> None:
    await client.send(POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (await client.reply()).status == 100, "the handler runs"
    await client.send(body + NEXT)
    await is_refused(client, upstream)


async def test_a_head_may_not_grow_without_end(client: Client, upstream: Upstream) -> None:
    headers = [b"X-%d: " % number + b"x" * 8000 + b"\r\n" for number in range(9)]  # each by itself would pass
    await client.send(GET + b"".join(headers))
    await is_refused(client, upstream)


@pytest.mark.parametrize("text", IDS)
@pytest.mark.parametrize("path", ["/api/tickets/{}", "/api/tickets/{}/comments"])
async def test_an_id_that_would_climb_is_not_looked_up(
    client: Client, upstream: Upstream, path: str, text: str
) -> None:
    target = path.format(text).encode()
    await client.send(GET.replace(b"/api/tickets", target, 1).replace(b"rdk_one", b"rdk_" + b"x" * 43) + b"\r\n")
    reply = await client.reply()
    assert reply.status in {401, 404}
    assert set(upstream.asked) <= {"/internal/keys/resolve"}


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"Content-Length: 52\r\n\r\n" + SIGN_IN,
        POST + b"Content-Length: 52\r\nExpect: 100-continue\r\n\r\n" + SIGN_IN,
        CHUNKED + BODY,
        POST + b"Transfer-Encoding: CHUNKED\r\n\r\n" + BODY,
        b"\r\n" + POST + b"Content-Length: 52\r\n\r\n" + SIGN_IN,
        POST.replace(b"desk", b"[::1]:8080") + b"Content-Length: 52\r\n\r\n" + SIGN_IN,
        POST.replace(b"desk", b"desk.example.com:443") + b"Content-Length: 52\r\n\r\n" + SIGN_IN,
    ],
)
async def test_what_is_unambiguous_is_answered_and_the_next_request_too(
    client: Client, upstream: Upstream, request_bytes: bytes
) -> None:
    await client.send(request_bytes + NEXT)
    reply = await client.reply()
    if reply.status == 100:
        reply = await client.reply()
    assert reply.status == 401
    assert (await client.reply()).status == 401
    assert upstream.asked[0] == "/internal/sign-in"


async def test_what_follows_a_request_for_another_protocol_is_not_lost_unnoticed(client: Client) -> None:
    await client.send(GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + NEXT)
    reply = await client.reply()
    assert reply.status == 401
    assert reply.headers["connection"] == "close"
    assert await client.rest() == b""

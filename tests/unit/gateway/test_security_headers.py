"""What answers are given on their way out."""

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from libs.common.security import SECURITY_HEADERS
from services.gateway.edge.proxies import CLIENT, Client
from services.gateway.edge.security import add_hsts, add_security_headers


async def test_an_answer_is_given_what_it_lacks() -> None:
    answer = web.Response()
    await add_security_headers(make_mocked_request("GET", "/"), answer)
    assert SECURITY_HEADERS.items() <= dict(answer.headers).items()
    assert answer.headers["Cache-Control"] == "no-store"


async def test_an_answer_keeps_what_it_has() -> None:
    own = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "public, max-age=300"}
    answer = web.Response(headers=own)
    await add_security_headers(make_mocked_request("GET", "/"), answer)
    assert own.items() <= dict(answer.headers).items()
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_https_is_insisted_on_where_it_was_used() -> None:
    for scheme, expected in (("https", True), ("http", False)):
        request, answer = make_mocked_request("GET", "/"), web.Response()
        request[CLIENT] = Client("198.51.100.1", scheme)
        await add_hsts(request, answer)
        assert ("Strict-Transport-Security" in answer.headers) is expected

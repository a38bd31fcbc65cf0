"""Which sites' pages may read answers."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from services.gateway.edge.cors import Cors

DESK = "https://desk.example.com"
CORS = Cors([DESK, "http://localhost:3000"])
FOREIGN = ("https://desk.example.com.evil", "http://desk.example.com", "https://desk.example.com:444", "null", "*", "")


async def test_a_preflight_of_an_allowed_origin_is_told_what_it_may_send() -> None:
    answer = await CORS.preflight(make_mocked_request("OPTIONS", "/api/tickets", headers={"Origin": DESK}))
    assert (answer.status, answer.body) == (204, None)
    assert answer.headers["Access-Control-Allow-Origin"] == DESK
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert {"If-Match", "Idempotency-Key", "Authorization", "X-CSRF-Token", "Relaydesk-Consistency"} <= set(
        answer.headers["Access-Control-Allow-Headers"].split(", ")
    )
    assert {"POST", "PATCH", "DELETE"} <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_foreign_origin_is_told_nothing(origin: str) -> None:
    answer = await CORS.preflight(make_mocked_request("OPTIONS", "/api/tickets", headers={"Origin": origin}))
    assert answer.status == 204
    read = web.Response()
    await CORS.mark(make_mocked_request("GET", "/api/tickets", headers={"Origin": origin}), read)
    for response in (answer, read):
        assert not [name for name in response.headers if name.lower().startswith("access-control")]


async def test_an_answer_may_be_read_by_its_own_origin_only() -> None:
    answer = web.Response()
    await CORS.mark(make_mocked_request("GET", "/", headers={"Origin": "http://localhost:3000"}), answer)
    assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    exposed = set(answer.headers["Access-Control-Expose-Headers"].split(", "))
    assert {"ETag", "Link", "Location", "Retry-After", "RateLimit", "Relaydesk-Consistency"} <= exposed


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "Origin"),
        ("Accept-Encoding", "Accept-Encoding, Origin"),
        ("Accept-Encoding, Origin", "Accept-Encoding, Origin"),
    ],
)
@pytest.mark.parametrize("headers", [{}, {"Origin": DESK}, {"Origin": "https://evil.example"}])
async def test_caches_are_told_that_answers_differ_by_origin(
    before: str | None, after: str, headers: dict[str, str]
) -> None:
    answer = web.Response(headers={"Vary": before} if before else {})
    await CORS.mark(make_mocked_request("GET", "/", headers=headers), answer)
    assert answer.headers.getall("Vary") == [after]

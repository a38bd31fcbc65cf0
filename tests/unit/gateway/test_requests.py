"""What the gateway makes of a request's head, without a server."""

import uuid
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from libs.common.identity import Principal
from libs.common.models import Role
from libs.common.people import Organization, User
from libs.common.problems import Problem
from libs.common.service import LOG_FIELDS
from services.gateway.answers.stored import matches as matches_etag
from services.gateway.callers.authentication import Authenticator, Caller
from services.gateway.edge.unicode import refuse_malformed_text
from services.gateway.upstreams.forwarding import path_id, upstream_path

KEY = "rdk_" + "x" * 43
TICKET = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.mark.parametrize(
    ("if_none_match", "matches"),
    [
        ((), False),
        (("",), False),
        (('"3"',), True),
        (('W/"3"',), True),
        (('"1", W/"2" ,"3"',), True),
        (('"1"', '"3"'), True),
        (("*",), True),
        (('"33"',), False),
        (("3",), False),
        (('"1","2"',), False),
        (('w/"3"',), False),
    ],
)
def test_if_none_match_is_read_as_the_rfc_says(if_none_match: tuple[str, ...], *, matches: bool) -> None:
    assert matches_etag(",".join(if_none_match), '"3"') is matches


@given(st.lists(st.text(alphabet='W/"*, 123abc', max_size=20), max_size=3))
def test_no_if_none_match_is_an_error(lines: list[str]) -> None:
    matches_etag(",".join(lines), '"3"')


class Resolved(Authenticator):
    """An authenticator that knows everybody, and notes what it was asked to resolve."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def _remember(self, credential: str, resolve: Any) -> Caller | None:
        self.asked.append(f"{resolve.__name__}:{credential}")
        organization = Organization(uuid.uuid4(), "acme", "Acme")
        user = User(uuid.uuid4(), "a@acme.example", "A", Role.AGENT)
        principal = Principal(
            organization_id=organization.id,
            user_id=user.id,
            name=user.name,
            role=user.role,
            credential="session",
            credential_id="1",
        )
        return Caller(principal, user, organization, "", csrf_token="right")


async def authenticate(headers: dict[str, str], method: str = "GET") -> list[str]:
    """What was looked up; raises the problem the client is told."""
    authenticator = Resolved()
    request = make_mocked_request(method, "/api/session", headers=headers)
    request[LOG_FIELDS] = {}
    await authenticator.authenticate(request)
    return authenticator.asked


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER {KEY}"])
async def test_the_scheme_is_read_in_any_case(authorization: str) -> None:
    assert await authenticate({"Authorization": authorization}) == [f"_caller_of_key:{KEY}"]


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        KEY,
        f"Basic {KEY}",
        f"Bearer  {KEY}",
        "Bearer sk_live_x",
        "Bearer rdk",
        "Bearer rdk_" + "x" * 197,
        f"Token {KEY}",
    ],
)
async def test_a_malformed_authorization_is_refused_without_a_look_up(authorization: str) -> None:
    with pytest.raises(Problem) as refused:
        await authenticate({"Authorization": authorization, "Cookie": "relaydesk_session=t"})
    assert refused.value.code == "authentication_required"
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("cookie", ["", "other=1", "relaydesk_session=", "relaydesk_session=" + "x" * 201])
async def test_without_a_usable_cookie_nobody_is_asked(cookie: str) -> None:
    with pytest.raises(Problem) as refused:
        await authenticate({"Cookie": cookie})
    assert refused.value.code == "authentication_required"


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "PUT"])
async def test_a_session_needs_its_csrf_token_for_unsafe_methods(method: str) -> None:
    cookie = {"Cookie": "relaydesk_session=t"}
    missing = [({}, "is missing"), ({"X-CSRF-Token": ""}, "is missing")]
    for wrong, said in (*missing, *(({"X-CSRF-Token": text}, "is not the session's") for text in ("wrong", "rightt"))):
        with pytest.raises(Problem) as refused:
            await authenticate(cookie | wrong, method)
        assert refused.value.code == "csrf_token_invalid"
        assert refused.value.detail == f"X-CSRF-Token {said}: GET /api/session tells the csrf_token to send."
    assert await authenticate(cookie | {"X-CSRF-Token": "right"}, method) == ["_caller_of_session:t"]
    assert await authenticate(cookie) == ["_caller_of_session:t"]


async def test_an_api_key_goes_before_a_cookie_and_needs_no_csrf_token() -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Cookie": "relaydesk_session=t"}
    assert await authenticate(headers, "POST") == [f"_caller_of_key:{KEY}"]


async def _unused(_request: web.Request) -> web.Response:
    return web.Response()


_ROUTE = web.Application().router.add_get("/api/tickets/{ticket_id}", _unused)


def ticket_request(text: str) -> web.Request:
    request = make_mocked_request("GET", "/api/tickets/x")
    request._match_info = web.UrlMappingMatchInfo({"ticket_id": text}, _ROUTE)
    return request


@pytest.mark.parametrize("text", [TICKET, TICKET.upper(), TICKET.replace("-", ""), "{" + TICKET + "}"])
def test_an_id_has_one_form_beyond_the_gateway(text: str) -> None:
    assert path_id(ticket_request(text), "ticket_id") == TICKET
    assert upstream_path(ticket_request(text)) == f"/api/tickets/{TICKET}"


@given(st.text(alphabet="./%2Fabcdef0123456789-?#\x00", max_size=60))
def test_no_text_in_place_of_an_id_leads_out_of_the_route(text: str) -> None:
    try:
        path = upstream_path(ticket_request(text))
    except Problem:
        return
    assert path == f"/api/tickets/{uuid.UUID(path.rpartition('/')[2])}"


async def test_a_head_that_is_no_text_goes_no_further() -> None:
    assert (await refuse_malformed_text(make_mocked_request("GET", "/é", headers={"X": "é"}), _unused)).status == 200
    with pytest.raises(Problem) as refused:
        await refuse_malformed_text(make_mocked_request("GET", "/\udcff"), _unused)
    assert refused.value.code == "malformed_request"

"""Which requests are answered before they are routed, and which are not."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from aiohttp import HttpVersion, HttpVersion10, HttpVersion11, web
from aiohttp.test_utils import make_mocked_request

from libs.common.cache.local import Entry
from libs.common.cache.readthrough import ReadThroughCache, connect
from libs.common.consistency import HEADER, Position
from libs.common.identity import Principal
from libs.common.models import Role
from libs.common.people import Organization, User
from services.gateway.answers.hits import Hit, Hits
from services.gateway.callers.authentication import Authenticator, Caller
from services.gateway.edge.proxies import TrustedProxies, network
from services.gateway.limits.gcra import Rate
from services.gateway.limits.limits import Limits, Rates

KEY = "rdk_" + "k" * 43
PATH = "/api/tickets/1?b=2"
PLENTY = Rate(60_000, 10_000)


class Remembering(Authenticator):
    """An authenticator that remembers one caller."""

    def __init__(self) -> None:
        self.caller: Caller | None = caller_with(Role.AGENT)

    def remembered(self, token: str) -> Caller | None:
        return self.caller if token == KEY else None


def caller_with(role: Role) -> Caller:
    organization = Organization(uuid.UUID(int=1), "acme", "Acme")
    user = User(uuid.UUID(int=2), "a@acme.example", "A", role)
    principal = Principal(
        organization_id=organization.id,
        user_id=user.id,
        name=user.name,
        role=role,
        credential="api_key",
        credential_id="1",
    )
    return Caller(principal, user, organization, KEY)


class Scene:
    """A request that was answered once, with what was remembered of it."""

    def __init__(self, *, rate: Rate = PLENTY, proxies: tuple[str, ...] = (), has_origins: bool = False) -> None:
        redis = connect("redis://127.0.0.1:1")
        self.cache = ReadThroughCache(redis, l1_items=10, l1_seconds=60)
        self.cache._l1.listening = True
        self.cache._current_at = time.monotonic()
        self.authenticator = Remembering()
        limits = Limits(
            redis, Rates(credential=rate, organization=PLENTY, address=PLENTY, sign_in=PLENTY, account=PLENTY)
        )
        trusted = TrustedProxies([network(text) for text in proxies])
        self.hits = Hits(self.cache, self.authenticator, limits, trusted, has_origins=has_origins)
        headers = {"Content-Type": "application/json", "ETag": '"3"'}
        self.entry = Entry(b"{}", headers, Position(1, 10), Position(1, 12), ("s",))
        self.cache._l1.put("key", self.entry, ["tag"])
        assert self.authenticator.caller is not None
        hit = Hit("key", "ticket", "/api/tickets/{ticket_id}", self.authenticator.caller, {}, consistent=True)
        self.hits.remember(request(), hit)

    def answer(self, asked: web.Request) -> bytes | None:
        return self.hits.answer(asked._message, "127.0.0.1")

    def answers(self, asked: web.Request) -> bool:
        return self.answer(asked) is not None


def request(
    method: str = "GET",
    path: str = PATH,
    headers: Mapping[str, str] | None = None,
    *,
    version: HttpVersion = HttpVersion11,
) -> web.Request:
    sent = {"Host": "desk", "Authorization": f"Bearer {KEY}", **(headers or {})}
    return make_mocked_request(method, path, headers=sent, version=version)


async def test_what_was_answered_once_is_answered_again() -> None:
    scene = Scene()
    assert scene.answers(request())
    assert scene.answers(request(headers={HEADER: Position(1, 10).token()}))
    assert scene.answers(request(headers={"If-None-Match": '"3"'}))


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "POST"},
        {"method": "HEAD"},
        {"path": "/api/tickets/1?b=3"},
        {"path": "/api/tickets/1"},
        {"headers": {"Authorization": f"bearer {KEY}"}},
        {"headers": {"Authorization": ""}},
        {"headers": {"Origin": "https://desk.example"}},
        {"headers": {"Expect": "100-continue"}},
        {"headers": {HEADER: Position(1, 11).token()}},
        {"headers": {HEADER: "nonsense"}},
        {"version": HttpVersion10},
    ],
)
async def test_anything_else_is_routed(asked: dict[str, Any]) -> None:
    scene = Scene()
    assert not scene.answers(request(**asked))
    assert scene.answers(request()), "and spoils nothing"


async def test_who_is_no_longer_known_is_asked_who_they_are() -> None:
    scene = Scene()
    scene.authenticator.caller = None
    assert not scene.answers(request())


async def test_who_has_other_rights_now_is_routed() -> None:
    scene = Scene()
    scene.authenticator.caller = caller_with(Role.ADMIN)
    assert not scene.answers(request())
    scene.authenticator.caller = caller_with(Role.AGENT)  # found out anew, and the same
    assert scene.answers(request())


async def test_what_was_invalidated_is_routed() -> None:
    scene = Scene()
    scene.cache._l1.invalidate(["tag"])
    assert not scene.answers(request())


async def test_while_invalidations_come_late_l1_answers_nothing() -> None:
    scene = Scene()
    scene.cache._current_at -= 2.0  # the last moment before which it has heard of everything
    assert not scene.answers(request())


async def test_that_there_is_nothing_is_told_by_the_route() -> None:
    scene = Scene()
    scene.cache._l1.put("key", msgspec.structs.replace(scene.entry, status=404), ["tag"])
    assert not scene.answers(request())


async def test_who_has_asked_too_much_is_routed_and_refused_there() -> None:
    scene = Scene(rate=Rate(60, 3))
    assert [scene.answers(request()) for _ in range(5)] == [True] * 3 + [False] * 2


def head_of(scene: Scene, asked: web.Request) -> list[str]:
    answer = scene.answer(asked)
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == scene.entry.body
    return head.decode().split("\r\n")


async def test_what_differs_by_origin_or_scheme_is_said() -> None:
    lines = head_of(Scene(), request())
    assert lines[0] == "HTTP/1.1 200 OK"
    assert "Content-Length: 2" in lines
    assert not any(line.startswith("Strict-Transport-Security") or line == "Vary: Origin" for line in lines)
    asked = request(headers={"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"})
    lines = head_of(Scene(proxies=("127.0.0.0/8",), has_origins=True), asked)
    assert "Vary: Origin" in lines
    assert any(line.startswith("Strict-Transport-Security: max-age=") for line in lines)

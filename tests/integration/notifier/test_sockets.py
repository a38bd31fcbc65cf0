"""Socket.IO clients against a running notifier."""

import asyncio
import contextlib
import json
import time
import uuid
from pathlib import Path

import aiohttp
import pytest
import socketio
from joserfc.jwk import OKPKey

from infra.local.stack import Stack
from libs.common.identity import REALTIME_TYPE, Signer
from libs.common.revocations import revoke
from services.notifier.streams import connect
from tests.support.processes import TestedService, running_service
from tests.support.realtime import (
    Listener,
    listening,
    principal,
    publish,
    realtime_token,
    ticket_event,
    until,
)


@pytest.mark.parametrize("transports", [("websocket",), ("polling",), ("polling", "websocket")])
async def test_a_subscribed_client_gets_events_in_arrays(
    stack: Stack, notifier: TestedService, transports: tuple[str, ...]
) -> None:
    organization_id, ticket_id = uuid.uuid4(), uuid.uuid4()
    events = [ticket_event(organization_id, ticket_id, version, title=f"Ünïcode {version}") for version in (1, 2, 3)]
    token = realtime_token(stack, principal(organization_id))
    async with listening(notifier.url, token, transports=transports) as listener:
        await publish(stack, events)
        await until(lambda: len(listener.items) >= 3)
    assert listener.event_ids == [str(event.id) for event in events]
    item = listener.items[0]
    assert set(item) == {"offset", "id", "type", "time", "version", "consistency", "ticket", "changed", "actor"}
    assert item["ticket"]["title"] == "Ünïcode 1"
    assert item["type"] == "ticket.created.v1"
    assert item["consistency"] == events[0].position.token()
    assert len({item["offset"].partition(":")[0] for item in listener.items}) == 1


async def test_two_organizations_do_not_see_each_other(stack: Stack, notifier: TestedService) -> None:
    ours, theirs, ticket_id = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    mine, other = ticket_event(ours, ticket_id, 1), ticket_event(theirs, uuid.uuid4(), 1)
    async with (
        listening(notifier.url, realtime_token(stack, principal(ours))) as first,
        listening(notifier.url, realtime_token(stack, principal(theirs))) as second,
    ):
        await publish(stack, [mine, other])
        await until(lambda: bool(first.items and second.items))
        await asyncio.sleep(0.5)
        assert first.event_ids == [str(mine.id)]
        assert second.event_ids == [str(other.id)]


async def test_only_who_subscribed_and_did_not_unsubscribe_gets_events(stack: Stack, notifier: TestedService) -> None:
    organization_id = uuid.uuid4()
    token = realtime_token(stack, principal(organization_id))
    async with (
        listening(notifier.url, token) as stays,
        listening(notifier.url, token) as leaves,
        listening(notifier.url, token, subscribe=False) as never,
    ):
        room = {"room": "organization"}
        assert await stays.subscribe() == {"ok": True, **room}  # once more is the same
        assert await leaves.client.call("unsubscribe", room) == {"ok": True, **room}
        assert await leaves.client.call("unsubscribe", room) == {"ok": True, **room}
        await publish(stack, [ticket_event(organization_id, uuid.uuid4(), 1)])
        await until(lambda: len(stays.items) == 1)
        await asyncio.sleep(0.3)
        assert not leaves.items
        assert not never.items


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"room": "ticket"},
        {"room": "organization", "organization_id": "x"},
        {"room": 1},
        [],
        "organization",
        7,
        True,
    ],
)
async def test_a_bad_subscription_is_answered_with_a_code(
    stack: Stack, notifier: TestedService, payload: object
) -> None:
    async with listening(notifier.url, realtime_token(stack, principal(uuid.uuid4())), subscribe=False) as listener:
        for event in ("subscribe", "unsubscribe"):
            answer = await listener.client.call(event, payload, timeout=5)
            assert answer["ok"] is False
            assert answer["code"] == "validation_failed"
            assert answer["detail"]
        assert (await listener.client.call("subscribe", timeout=5))["code"] == "validation_failed"
        assert (await listener.subscribe())["ok"] is True  # the socket is as good as before


def _bad_tokens(stack: Stack) -> dict[str, object]:
    who = principal(uuid.uuid4())
    gateway = Signer(stack.credentials.signing_key("gateway"))
    stranger = OKPKey.generate_key("Ed25519", {"kid": "gateway"}).as_dict(private=True)
    good = realtime_token(stack, who)
    head, claims, signature = good.split(".")
    return {
        "missing": None,
        "empty": "",
        "not text": 7,
        "no token": "a.b.c",
        "forged": Signer(json.dumps(stranger)).realtime_token(who)[0],
        "changed": f"{head}.{claims[:-4]}AAAA.{signature}",
        "unsigned": f"{head}.{claims}.",
        "expired": gateway._sign(REALTIME_TYPE, "notifier", -1, principal=who),
        "wrong audience": gateway._sign(REALTIME_TYPE, "tickets", 600, principal=who),
        "wrong type": gateway.principal_token(who, "notifier"),
        "wrong issuer": Signer(stack.credentials.signing_key("search")).realtime_token(who)[0],
    }


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_bad_token_is_refused_with_a_code(stack: Stack, notifier: TestedService, transport: str) -> None:
    for name, token in _bad_tokens(stack).items():
        listener = Listener()
        with pytest.raises(socketio.exceptions.ConnectionError):
            await listener.client.connect(
                notifier.url, auth={"token": token}, transports=[transport], retry=False, wait_timeout=5
            )
        assert listener.refusal["data"]["code"] == "authentication_required", name
        assert listener.refusal["data"]["detail"], name
        await listener.client.shutdown()


@pytest.mark.parametrize("auth", [None, [], "token", {"token": {}}, 1])
async def test_other_kinds_of_auth_are_refused(notifier: TestedService, auth: object) -> None:
    listener = Listener()
    with pytest.raises(socketio.exceptions.ConnectionError):
        await listener.client.connect(notifier.url, auth=auth, transports=["websocket"], wait_timeout=5)
    assert listener.refusal["data"]["code"] == "authentication_required"
    await listener.client.shutdown()


async def test_revoking_closes_the_sockets_of_the_credential_and_refuses_its_token(
    stack: Stack, notifier: TestedService
) -> None:
    organization_id = uuid.uuid4()
    revoked, other = principal(organization_id), principal(organization_id)
    token = realtime_token(stack, revoked)
    redis = connect(stack.redis_url)
    async with (
        listening(notifier.url, token) as first,
        listening(notifier.url, token, transports=("polling",)) as second,
        listening(notifier.url, realtime_token(stack, other)) as bystander,
    ):
        started = time.monotonic()
        await revoke(redis, revoked.credential_id)
        await asyncio.wait_for(asyncio.gather(first.disconnected.wait(), second.disconnected.wait()), 10)
        print(f"revocation took {(time.monotonic() - started) * 1000:.0f} ms")
        refused = Listener()
        with pytest.raises(socketio.exceptions.ConnectionError):
            await refused.client.connect(notifier.url, auth={"token": token}, transports=["websocket"])
        assert "revoked" in refused.refusal["data"]["detail"]
        assert not bystander.disconnected.is_set()
        await refused.client.shutdown()
    await redis.aclose()


async def test_a_notifier_that_starts_later_knows_what_was_revoked(stack: Stack, topic: str, tmp_path: Path) -> None:
    revoked = principal(uuid.uuid4())
    token = realtime_token(stack, revoked)
    redis = connect(stack.redis_url)
    await revoke(redis, revoked.credential_id)
    await redis.aclose()
    async with running_service(stack, "notifier", tmp_path / "log") as late:
        refused = Listener()
        with pytest.raises(socketio.exceptions.ConnectionError):
            await refused.client.connect(late.url, auth={"token": token}, transports=["websocket"])
        assert refused.refusal["data"]["code"] == "authentication_required"
        await refused.client.shutdown()


async def test_a_socket_is_disconnected_when_its_token_ends(stack: Stack, notifier: TestedService) -> None:
    gateway = Signer(stack.credentials.signing_key("gateway"))
    token = gateway._sign(REALTIME_TYPE, "notifier", 2, principal=principal(uuid.uuid4()))
    async with listening(notifier.url, token) as listener:
        assert not listener.disconnected.is_set()
        await asyncio.wait_for(listener.disconnected.wait(), 10)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("https://desk.example.com", 200),
        ("https://desk.example.com.evil.example", 400),
        ("http://desk.example.com", 400),
        ("null", 400),
        ("*", 400),
    ],
)
async def test_only_exact_origins_may_connect(notifier: TestedService, origin: str | None, status: int) -> None:
    url = f"{notifier.url}/socket.io/?EIO=4&transport=polling"
    headers = {"Origin": origin} if origin else {}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        assert answer.status == status
        allowed = answer.headers.get("Access-Control-Allow-Origin")
        assert allowed == (origin if status == 200 and origin else None)


async def test_without_configured_origins_no_browser_may_connect(stack: Stack, topic: str, tmp_path: Path) -> None:
    async with (
        running_service(stack, "notifier", tmp_path / "log", NOTIFIER_ALLOWED_ORIGINS="") as closed,
        aiohttp.ClientSession() as session,
    ):
        for transport in ("polling", "websocket"):
            url = f"{closed.url}/socket.io/?EIO=4&transport={transport}"
            async with session.get(url, headers={"Origin": "https://desk.example.com"}) as answer:
                assert answer.status == 400


async def test_the_connection_settings_are_the_required_ones(notifier: TestedService) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{notifier.url}/socket.io/?EIO=4&transport=websocket", compress=15) as websocket,
    ):
        assert websocket.compress == 0  # permessage-deflate was offered and is not used
        opened = json.loads((await websocket.receive_str())[1:])
    assert opened["pingInterval"] == 25_000
    assert opened["pingTimeout"] == 60_000
    assert opened["maxPayload"] == 1_000_000


async def test_an_upgrade_that_stalls_is_ended_and_polling_goes_on(stack: Stack, notifier: TestedService) -> None:
    organization_id = uuid.uuid4()
    token = realtime_token(stack, principal(organization_id))
    async with listening(notifier.url, token, transports=("polling",)) as listener, aiohttp.ClientSession() as session:
        url = f"{notifier.url}/socket.io/?EIO=4&transport=websocket&sid={listener.client.eio.sid}"
        async with session.ws_connect(url) as stalled:
            await asyncio.wait_for(stalled.receive(), 15)
            assert stalled.closed
        for count in (1, 2):  # the poll that was open during the upgrade, and one after it
            await publish(stack, [ticket_event(organization_id, uuid.uuid4(), 1)])
            await until(lambda count=count: len(listener.items) == count)  # type: ignore[misc]


MALFORMED = ["", "x", "4", "42", "42[", '42["a"', "45-", "4{}", "49", "0" * 500, "42" + "[" * 5000, "451-[]", "b4AA"]


async def test_malformed_frames_harm_nobody_else(stack: Stack, topic: str, tmp_path: Path) -> None:
    organization_id = uuid.uuid4()
    token = realtime_token(stack, principal(organization_id))
    log = tmp_path / "log"
    async with (
        running_service(stack, "notifier", log) as notifier,
        listening(notifier.url, token) as listener,
        aiohttp.ClientSession() as session,
    ):
        base = f"{notifier.url}/socket.io/?EIO=4"
        for frame in MALFORMED:
            async with session.ws_connect(f"{base}&transport=websocket") as websocket:
                await websocket.receive_str()
                await websocket.send_str(frame)
                with contextlib.suppress(ConnectionError):  # it may hang up on us in the middle
                    await websocket.send_bytes(frame.encode())
                    await websocket.send_str("4" + "x" * 1_100_000)
            async with session.get(f"{base}&transport=polling") as answer:
                sid = json.loads((await answer.text())[1:])["sid"]
            for body in (frame, '40{"token":1}', "4" + "x" * 1_100_000):
                async with session.post(f"{base}&transport=polling&sid={sid}", data=body) as answer:
                    assert answer.status in {200, 400, 413}
        await publish(stack, [ticket_event(organization_id, uuid.uuid4(), 1)])
        await until(lambda: len(listener.items) == 1)
    assert "Traceback" not in log.read_text()


async def test_large_tickets_arrive_in_messages_of_at_most_a_megabyte(stack: Stack, notifier: TestedService) -> None:
    organization_id = uuid.uuid4()
    events = [ticket_event(organization_id, uuid.uuid4(), 1, description="ü" * 65_000) for _ in range(30)]
    async with listening(notifier.url, realtime_token(stack, principal(organization_id))) as listener:
        await publish(stack, events)
        await until(lambda: len(listener.items) == 30)
        assert sorted(listener.event_ids) == sorted(str(event.id) for event in events)
        assert max(len(json.dumps(batch, ensure_ascii=False).encode()) for batch in listener.batches) < 1_100_000


async def test_counters_tell_sockets_and_deliveries(stack: Stack, notifier: TestedService) -> None:
    async def value(name: str) -> float:
        async with aiohttp.ClientSession() as session, session.get(f"{notifier.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).rpartition(" ")[2])

    organization_id, ticket_id = uuid.uuid4(), uuid.uuid4()
    token = realtime_token(stack, principal(organization_id))
    announced = 'notifier_announced_total{outcome="announced"}'
    duplicate = 'notifier_announced_total{outcome="duplicate"}'
    names = ("notifier_deliveries_total", announced, duplicate, "notifier_version_gaps_total")
    before = {name: await value(name) for name in names}
    sockets = await value("notifier_sockets")
    async with listening(notifier.url, token) as one, listening(notifier.url, token) as two:
        assert await value("notifier_sockets") == sockets + 2
        first, gap = ticket_event(organization_id, ticket_id, 1), ticket_event(organization_id, ticket_id, 3)
        await publish(stack, [first, first, gap])
        await until(lambda: len(one.items) == len(two.items) == 2)
    assert [await value(name) - before[name] for name in names] == [4, 2, 1, 1]
    await asyncio.sleep(0.1)
    assert await value("notifier_sockets") == sockets


async def test_a_polling_client_that_leaves_is_let_go(stack: Stack, notifier: TestedService) -> None:
    """Its open poll is answered; the engine alone would hold it for 85 s."""
    token = realtime_token(stack, principal(uuid.uuid4()))
    async with asyncio.timeout(30), listening(notifier.url, token, transports=("polling",)):
        pass

"""What the notifier measures."""

import uuid

import aiohttp

from infra.local.stack import Stack
from tests.support.processes import TestedService
from tests.support.realtime import listening, principal, realtime_token


async def test_a_socket_is_counted_as_a_socket_and_not_as_a_slow_request(stack: Stack, notifier: TestedService) -> None:
    token = realtime_token(stack, principal(uuid.uuid4()))
    async with aiohttp.ClientSession(notifier.url) as http:
        async with listening(notifier.url, token), http.get("/metrics") as answer:
            during = await answer.text()
        async with http.get("/metrics") as answer:
            after = await answer.text()
    assert "notifier_sockets 0.0" not in during
    assert 'route="/readyz"' in after
    assert 'route="/socket.io/"' not in after

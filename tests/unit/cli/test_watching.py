"""`relaydesk watch` against a Socket.IO server: order, ends, reconnection, refusal."""

import asyncio
import contextlib
import json
import signal
from typing import Any

import pytest

from cli import watching
from cli.errors import Exit
from tests.unit.cli.conftest import Run, started
from tests.unit.cli.stand_in import KEY, StandIn


def event(number: int) -> dict[str, Any]:
    return {
        "offset": f"e:{number}",
        "type": "ticket.status_changed.v1",
        "time": "2024-01-01T10:00:00Z",
        "version": 2,
        "ticket": {"number": number, "title": f"t{number} [b]\x1b", "status": "solved", "priority": "low"},
        "changed": ["status"],
        "actor": {"name": "Ann"},
    }


@pytest.fixture
def watch(run: Run, platform: StandIn) -> Run:
    return lambda *arguments: run("watch", *arguments, "--url", platform.url, "--api-key", KEY)


async def test_events_are_printed_one_a_line_as_they_came(watch: Run, platform: StandIn) -> None:
    platform.script = [[event(1), event(2)], [event(3), event(4)]]
    result = await watch("--json", "--count", "3")
    assert result.code == Exit.OK
    assert [json.loads(line) for line in result.out.splitlines()] == [event(1), event(2), event(3)]
    assert "Watching acme" in result.err


async def test_a_pipe_gets_a_line_of_text_that_steers_nothing(watch: Run, platform: StandIn) -> None:
    platform.script = [[event(1)]]
    result = await watch("--count", "1")
    assert result.out.split()[1:] == ["status_changed", "#1", "solved", "low", "t1", "[b]·", "Ann"]


async def test_the_watch_ends_when_it_has_been_quiet(watch: Run, platform: StandIn) -> None:
    platform.script = [[event(1)]]
    result = await watch("--json", "--until-idle", "0.5")
    assert (result.code, len(result.out.splitlines())) == (Exit.OK, 1)


async def test_a_connection_that_ends_is_made_again_with_a_new_token(watch: Run, platform: StandIn) -> None:
    platform.script = [[event(1)], None, [event(2)], None, [event(3)]]
    result = await watch("--json", "--count", "3")
    assert [json.loads(line)["ticket"]["number"] for line in result.out.splitlines()] == [1, 2, 3]
    assert platform.tokens == 3
    assert result.err.count("connecting again") == 2
    assert result.err.count("Watching acme again") == 2


async def test_a_refused_subscription_is_exit_3(watch: Run, platform: StandIn) -> None:
    platform.subscription = {"ok": False, "code": "permission_denied", "detail": "not yours"}
    result = await watch("--until-idle", "20")
    assert result.code == Exit.NOT_AUTHORISED
    assert "refuses the subscription: not yours" in result.err


async def test_ctrl_c_leaves_cleanly(platform: StandIn) -> None:
    process = await started(platform, "watch", "--json")
    assert process.stderr is not None
    try:
        assert b"Watching acme" in await asyncio.wait_for(process.stderr.readline(), 120)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert (process.returncode, err) == (Exit.OK, b"")


@pytest.mark.parametrize("strange", [{}, {"ticket": 1, "actor": None, "time": 5, "type": None}])
def test_an_event_of_an_unknown_form_is_shown_as_far_as_it_goes(strange: dict[str, Any]) -> None:
    assert len(watching.cells(strange)) == 7

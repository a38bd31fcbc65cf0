"""`relaydesk cache`."""

import json
import sys
from typing import Any

import pytest
import typer

from cli.errors import Exit
from tests.unit.cli.conftest import Run
from tests.unit.cli.stand_in import KEY, StandIn

TICKET = "ticket:0190b8a0-0000-7000-8000-000000000001"
FIGURES: dict[str, Any] = {
    "process": 4711,
    "l1": {"entries": 321, "limit": 500, "listening": True},
    "l2": {"keys": 12345, "used_bytes": 45_600_000, "limit_bytes": 256_000_000, "evicted": 7},
    "loads_under_way": 2,
    "reads": [{"key_type": "ticket", "l1_hits": 8000, "l2_hits": 1000, "misses": 1000, "hit_rate": 0.9}],
    "hit_rate": 0.9,
    "hottest": [{"path": "/api/search?q=[red]\x1b[31m", "role": "agent", "hits": 99}],
}


@pytest.fixture
def arguments(platform: StandIn) -> tuple[str, ...]:
    platform.cache = FIGURES
    return ("--url", platform.url, "--api-key", KEY)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Somebody sits at it and answers with what is in the list; the questions are put there."""
    told: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def confirm(question: str, **_options: Any) -> bool:
        reply = told.pop()
        told.append(question)
        if reply == "^C":
            raise typer.Abort
        return reply == "y"

    monkeypatch.setattr(typer, "confirm", confirm)
    return told


@pytest.mark.parametrize("command", ["stats", "clear"])
async def test_both_commands_have_help_with_an_example(run: Run, command: str) -> None:
    result = await run("cache", command, "--help")
    assert result.code == Exit.OK
    assert f"Example: relaydesk cache {command}" in result.out


async def test_stats_shows_both_levels_and_text_that_cannot_steer_the_terminal(
    run: Run, platform: StandIn, arguments: tuple[str, ...]
) -> None:
    result = await run("cache", "stats", *arguments)
    assert result.code == Exit.OK
    for text in ("321 of 500 entries", "12,345 keys", "45.6 MB of 256.0 MB", "7 evicted", "8,000", "90.0%", "99"):
        assert text in result.out
    assert "/api/search?q=[red]·[31m" in result.out
    assert json.loads((await run("cache", "stats", *arguments, "--json")).out) == FIGURES
    without: dict[str, Any] = {"l2": None, "hit_rate": None, "reads": [], "hottest": []}
    platform.cache = FIGURES | without | {"l1": {"entries": 0, "limit": 500, "listening": False}}
    result = await run("cache", "stats", *arguments)
    assert "does not answer" in result.out
    assert "not listening" in result.out


@pytest.mark.parametrize(
    ("options", "sent", "told"),
    [
        ((), {}, "Cleared everything of the organization."),
        (("--tag", "tickets"), {"tag": "tickets"}, "Cleared the tag tickets."),
        (("--tag", TICKET), {"tag": TICKET}, f"Cleared the tag {TICKET}."),
        (("--prefix", "/api/tickets?"), {"prefix": "/api/tickets?"}, "1,234 entries were removed"),
    ],
)
async def test_clear_says_what_was_done(
    run: Run, platform: StandIn, arguments: tuple[str, ...], *, options: tuple[str, ...], sent: Any, told: str
) -> None:
    result = await run("cache", "clear", *options, *arguments, "--yes")
    assert (result.code, result.out) == (Exit.OK, "")
    assert told in result.err
    printed = await run("cache", "clear", *options, *arguments, "-y", "--json")
    assert json.loads(printed.out)["value"] == next(iter(sent.values()), None)
    assert platform.cleared == [sent, sent]


@pytest.mark.parametrize(
    "options", [("--tag", "ticket:1"), ("--tag", ""), ("--prefix", "tickets"), ("--tag", "search", "--prefix", "/api/")]
)
async def test_what_cannot_be_cleared_is_exit_2(
    run: Run, platform: StandIn, arguments: tuple[str, ...], options: tuple[str, ...]
) -> None:
    result = await run("cache", "clear", *options, *arguments, "--yes")
    assert result.code == Exit.USAGE
    assert options[0] in result.err
    assert platform.cleared == []


async def test_clear_asks_first(run: Run, platform: StandIn, arguments: tuple[str, ...], terminal: list[str]) -> None:
    for reply, code in (("n", Exit.REFUSED), ("^C", Exit.INTERRUPTED)):
        terminal[:] = [reply]
        result = await run("cache", "clear", *arguments)
        assert (result.code, platform.cleared) == (code, [])
        assert "Nothing was cleared." in result.err
        assert terminal == [f"Clear everything that is cached for Acme at {platform.url}?"]
    terminal[:] = ["y"]
    assert (await run("cache", "clear", "--prefix", "/api/tickets", *arguments)).code == Exit.OK
    assert terminal == [f"Clear what is cached of /api/tickets… for Acme at {platform.url}?"]
    assert platform.cleared == [{"prefix": "/api/tickets"}]


async def test_without_a_terminal_clear_wants_yes(
    run: Run, platform: StandIn, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    result = await run("cache", "clear", *arguments)
    assert (result.code, platform.cleared) == (Exit.USAGE, [])
    assert "give --yes" in result.err


@pytest.mark.parametrize("command", [("stats",), ("clear", "--yes")])
async def test_a_wrong_key_is_exit_3(run: Run, platform: StandIn, command: tuple[str, ...]) -> None:
    result = await run("cache", *command, "--url", platform.url, "--api-key", "rdk_wrong")
    assert result.code == Exit.NOT_AUTHORISED
    assert platform.cleared == []

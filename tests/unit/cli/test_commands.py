"""The other commands, credentials, and exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli import credentials, output, seeding
from cli.errors import Exit
from tests.unit.cli.conftest import Run
from tests.unit.cli.stand_in import KEY, StandIn

CLOSED = "http://127.0.0.1:9"
FOUND: dict[str, Any] = {
    "results": [
        {
            "ticket": {
                "id": "0190b8a0-0000-7000-8000-000000000001", "number": 12, "title": "Invoice [red]\x1b[31m",
                "status": "open", "priority": "high", "created_at": "2024-01-01T00:00:00Z",
            },
            "highlight": "the <mark>invoice</mark> &amp;lt; &lt;b&gt;",
            "score": 0.5,
        }
    ],
    "took_ms": 2.5,
}  # fmt: skip


@pytest.mark.parametrize("command", ["import", "seed", "watch", "search", "health"])
async def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    result = await run(command, "--help")
    assert result.code == Exit.OK
    assert f"Example: relaydesk {command}" in result.out


async def test_help_tells_the_exit_codes(run: Run) -> None:
    told = " ".join((await run("--help")).out.split())
    assert "0 done · 1 something was refused, or the platform is degraded · 2 the arguments" in told


@pytest.mark.parametrize("arguments", [("seed", "--tickets", "1", "--retry-for", "0"), ("watch",), ("search", "x")])
async def test_a_platform_that_is_not_there_is_exit_4(run: Run, arguments: tuple[str, ...]) -> None:
    result = await run(*arguments, "--url", CLOSED, "--api-key", KEY)
    assert result.code == Exit.UNREACHABLE
    assert f"{CLOSED} cannot be reached; is it running? (make run, or --url)" in result.err
    assert not result.out


async def test_the_address_is_where_the_checkout_was_started_last(
    run: Run, platform: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    demo = tmp_path / ".local" / "demo.json"
    demo.parent.mkdir()
    demo.write_text(json.dumps({"url": platform.url, "api_key": {"key": KEY}}))
    assert (await run("health")).code == Exit.OK
    assert f"Using {platform.url} with the key" in (await run("search", "x", "--verbose")).err
    assert f"{CLOSED} cannot" in (await run("search", "x", "--url", CLOSED)).err
    monkeypatch.setenv("RELAYDESK_URL", CLOSED)
    assert f"{CLOSED} cannot" in (await run("health")).err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"url": null}', '{"url": 1}', '{"url": "nowhere"}', "\xff"])
def test_without_one_in_the_checkout_it_is_the_usual_address(tmp_path: Path, content: str) -> None:
    (tmp_path / ".local").mkdir()
    assert credentials.find_url(None, tmp_path) == credentials.DEFAULT_URL
    (tmp_path / ".local" / "demo.json").write_bytes(content.encode("latin-1"))
    assert credentials.find_url(None, tmp_path) == credentials.DEFAULT_URL


INTERRUPTED_IMPORT = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "aiohttp":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from cli.start import main
main()
"""


def test_ctrl_c_while_the_command_loads_ends_it_quietly() -> None:
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT, "health"], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (Exit.INTERRUPTED, b"", b"")


def test_only_watch_loads_socket_io() -> None:
    script = "import sys, cli.app; sys.exit('socketio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [("seed", "--tickets", "1"), ("watch",), ("search", "x")])
async def test_a_wrong_or_missing_key_is_exit_3(run: Run, platform: StandIn, arguments: tuple[str, ...]) -> None:
    result = await run(*arguments, "--url", platform.url, "--api-key", "rdk_wrong")
    assert result.code == Exit.NOT_AUTHORISED
    assert "(401 authentication_required)" in result.err
    result = await run(*arguments, "--url", platform.url)
    assert result.code == Exit.NOT_AUTHORISED
    assert "No API key: give --api-key or set RELAYDESK_API_KEY" in result.err
    assert (await run(*arguments, "--url", platform.url, "--api-key", "a\nb")).code == Exit.NOT_AUTHORISED


async def test_something_else_at_the_address_is_exit_4(run: Run, platform: StandIn) -> None:
    result = await run("search", "x", "--url", f"{platform.url}/elsewhere", "--api-key", KEY)
    assert result.code == Exit.UNREACHABLE
    assert "does not answer as Relaydesk does" in result.err
    platform.found = {"unexpected": 1}
    result = await run("search", "x", "--url", platform.url, "--api-key", KEY)
    assert result.code == Exit.UNREACHABLE
    assert "does not answer as Relaydesk does" in result.err


async def test_the_key_is_the_demo_key_of_the_checkout_and_verbose_says_so(
    run: Run, platform: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local" / "demo.json").write_text(json.dumps({"api_key": {"key": KEY}}))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    result = await run("search", "x", "--url", platform.url, "--verbose")
    assert result.code == Exit.OK
    assert f"Using {platform.url} with the key from {tmp_path}/.local/demo.json" in result.err
    (tmp_path / "deep" / ".git").mkdir()
    assert (await run("search", "x", "--url", platform.url)).code == Exit.NOT_AUTHORISED


@pytest.mark.parametrize("content", ["", "[]", '{"api_key": null}', "\xff"])
async def test_a_damaged_demo_file_is_told(run: Run, platform: StandIn, tmp_path: Path, content: str) -> None:
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local" / "demo.json").write_bytes(content.encode("latin-1"))
    result = await run("search", "x", "--url", platform.url)
    assert result.code == Exit.NOT_AUTHORISED
    assert "does not hold an API key" in result.err


async def test_the_environment_gives_address_and_key(
    run: Run, platform: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAYDESK_URL", platform.url)
    monkeypatch.setenv("RELAYDESK_API_KEY", KEY)
    assert (await run("search", "x", "--limit", "7")).code == Exit.OK
    assert platform.queries == [{"q": "x", "limit": "7"}]


async def test_search_shows_text_that_cannot_steer_the_terminal(run: Run, platform: StandIn) -> None:
    platform.found = FOUND
    result = await run("search", "invoice", "--url", platform.url, "--api-key", KEY)
    assert "#12" in result.out
    assert "Invoice [red]·[31m" in result.out
    assert "the invoice &lt; <b>" in result.out
    assert "1 found in 2.5 ms" in result.err
    printed = await run("search", "invoice", "--url", platform.url, "--api-key", KEY, "--json")
    assert json.loads(printed.out) == FOUND


async def test_health_tells_ok_degraded_and_unreachable_by_its_exit_code(run: Run, platform: StandIn) -> None:
    assert (await run("health", "--url", platform.url)).code == Exit.OK
    checks = [{"name": "kafka", "status": "failed", "detail": "no broker", "duration_ms": 3.25}]
    platform.health = {"status": "degraded", "checks": checks}
    degraded = await run("health", "--url", platform.url)
    assert degraded.code == Exit.REFUSED
    assert "no broker" in degraded.out
    printed = await run("health", "--url", platform.url, "--json")
    assert (printed.code, json.loads(printed.out)) == (Exit.REFUSED, platform.health)
    gone = await run("health", "--url", CLOSED)
    assert (gone.code, gone.out) == (Exit.REFUSED, "")
    assert "cannot be reached" in gone.err


async def test_seeding_a_number_twice_creates_its_tickets_once(run: Run, platform: StandIn) -> None:
    arguments = ("seed", "--tickets", "450", "--seed", "5", "--url", platform.url, "--api-key", KEY, "--json")
    platform.faults = [503]
    first = json.loads((await run(*arguments)).out)
    assert first == {"organization": "acme", "seed": 5, "created": 450, "exists": 0, "refused": 0}
    assert json.loads((await run(*arguments)).out)["exists"] == 450
    result = await run("seed", "--tickets", "10", "--url", platform.url, "--api-key", KEY, "--json")
    assert json.loads(result.out)["created"] == 10


async def test_seeding_another_organization_writes_nothing(run: Run, platform: StandIn) -> None:
    arguments = ("--organization", "other", "--url", platform.url, "--api-key", KEY)
    assert (await run("seed", "--tickets", "5", *arguments)).code == Exit.NOT_AUTHORISED
    assert not platform.tickets


def test_seeded_tickets_are_varied_complete_and_repeatable() -> None:
    tickets = list(seeding.tickets(500, 1))
    assert tickets == list(seeding.tickets(500, 1))
    assert tickets[:100] == list(seeding.tickets(100, 1))
    assert len({ticket.title for ticket in tickets}) > 150
    assert len({ticket.description for ticket in tickets}) > 490
    assert len({ticket.priority for ticket in tickets}) == 4
    assert not any("{" in ticket.title + ticket.description for ticket in tickets)


def test_control_characters_are_made_visible() -> None:
    assert output.plain("a\x1b[2J\u202eb\nc") == "a·[2J·b c"

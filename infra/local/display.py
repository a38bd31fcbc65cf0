"""What the launcher shows: a live list of the parts on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Iterator, Mapping

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from infra.local.demo import Demo
from infra.local.part import Part, State

STYLES = {
    State.WAITING: "dim",
    State.PREPARING: "cyan",
    State.STARTING: "cyan",
    State.READY: "green",
    State.STOPPING: "yellow",
    State.STOPPED: "dim",
    State.FAILED: "bold red",
}
BUSY = {State.PREPARING, State.STARTING, State.STOPPING}


class Display:
    """Shows the states of parts. Never fails: the terminal may be closed while the stack runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parts: Mapping[str, Part] = {}
        self._external: Mapping[str, str] = {}
        self._live: Live | None = None
        self._spinner = Spinner("dots")
        self._shown: dict[str, str] = {}

    @contextlib.contextmanager
    def watching(self, parts: Mapping[str, Part], external: Mapping[str, str]) -> Iterator[None]:
        """Show the parts as they change; the list stays on the screen afterwards."""
        self._parts, self._external = parts, external
        if not self._console.is_terminal:
            for name, address in external.items():
                self.say(f"{name}: external, {address}")
            yield
            return
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=10)
        try:
            with self._live:
                yield
        finally:
            self._live = None

    def changed(self, part: Part) -> None:
        """A part has a new state."""
        if self._live is not None:
            self._refresh()
        elif not self._console.is_terminal and part.state is not State.FAILED:
            line = f"{part.name}: {part.state.value}{f', {part.detail}' if part.detail else ''}"
            if self._shown.get(part.name) != line:
                self._shown[part.name] = line
                self.say(line)

    def say(self, sentence: str, style: str = "") -> None:
        """One line, not wrapped, so that it can be copied."""
        with contextlib.suppress(OSError):
            self._console.print(Text(sentence, style=style), soft_wrap=True)

    def ready(self, gateway: str, demo: Demo, seconds: float, logs: str) -> None:
        """The panel with everything a newcomer needs."""
        table = Table.grid(padding=(0, 2))
        table.add_row("API", Text(gateway, style="bold"))
        table.add_row("described at", f"{gateway}/api/docs")
        table.add_row("health", f"{gateway}/api/health")
        table.add_row("organization", demo.organization)
        for user in demo.users:
            table.add_row(user.role, Text(f"{user.email}   {user.password}"))
        if demo.api_key:
            table.add_row("API key", Text(demo.api_key))
        table.add_row("logs", Text(logs, overflow="fold"))
        table.add_row("stop", "Ctrl-C here, or `make stop` in another shell")
        with contextlib.suppress(OSError):
            title = f"Relaydesk is ready after {seconds:.1f} s"
            self._console.print(Panel(table, title=title, border_style="green", expand=False))
        if demo.note:
            self.say(demo.note, "yellow")
        if demo.api_key:
            self.say("Create a ticket:")
            self.say(
                f"curl -sS {gateway}/api/tickets -H 'Authorization: Bearer {demo.api_key}' "
                "-H 'Content-Type: application/json' -d '{\"title\": \"The printer is on fire\"}'"
            )

    def _refresh(self) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.refresh()

    def _table(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for part in self._parts.values():
            mark: RenderableType = self._spinner if part.state in BUSY else _mark(part.state)
            state = Text(f"{part.state.value} {part.detail}".strip(), style=STYLES[part.state])
            table.add_row(mark, part.name, Text(str(part.port), style="dim"), state)
        for name, address in self._external.items():
            table.add_row("•", name, "", Text(f"external {address}", style="blue"))
        return table


def _mark(state: State) -> Text:
    symbol = {State.READY: "✔", State.FAILED: "✘", State.STOPPED: "■"}.get(state, "·")
    return Text(symbol, style=STYLES[state])

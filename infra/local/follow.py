"""`make logs`: all log files of a stack in one stream, each line with the name of its part."""

import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from infra.local.errors import LauncherError
from infra.local.process import read_tail

POLL_SECONDS = 0.2
LINES_BEFORE = 20
COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")


class LogFile:
    """One growing log file."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._path = path
        self._position = 0
        self._rest = ""

    def last_lines(self, count: int) -> list[str]:
        """Its last lines; `new_lines` goes on after them."""
        self._position = self._size()
        return read_tail(self._path).splitlines()[-count:] if count else []

    def new_lines(self) -> list[str]:
        """Complete lines written since the last call."""
        size = self._size()
        if size < self._position:  # it was cut
            self._position = 0
        if size == self._position:
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            text = self._rest + file.read(size - self._position).decode(errors="replace")
        self._position = size
        *lines, self._rest = text.split("\n")
        return lines

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0


def follow(folder: Path, part: str | None, console: Console, *, forever: bool) -> None:
    """Print the last lines of the logs, then new ones as they come; raises LauncherError without a log."""
    shown: dict[str, LogFile] = {}
    lines = list(_open(folder, part, shown))
    if not shown:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.log")))
        raise LauncherError(
            f"There is no log of {part!r} in {folder}; there are logs of {known}."
            if part and known
            else f"There are no logs in {folder} yet; `make run` writes them."
        )
    width = max(len(name) for name in shown)
    while True:
        for name, line in lines:
            colour = COLOURS[sorted(shown).index(name) % len(COLOURS)]
            console.print(Text(f"{name:<{width}} ", style=colour) + Text(line), soft_wrap=True)
        if not forever:
            return
        time.sleep(POLL_SECONDS)
        lines = list(_open(folder, part, shown))  # a part may have begun its log meanwhile
        lines += [(name, line) for name, log in shown.items() for line in log.new_lines()]


def _open(folder: Path, part: str | None, shown: dict[str, LogFile]) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.log")):
        if path.stem in shown or path.name.endswith(".old.log") or (part and path.stem != part):
            continue
        shown[path.stem] = LogFile(path)
        for line in shown[path.stem].last_lines(LINES_BEFORE):
            yield path.stem, line

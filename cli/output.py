"""Everything that is shown: data on standard output, progress and notices on standard error."""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from cli.client import Health, HealthCheck
from cli.errors import Exit
from libs.common.cache.administration import CacheFigures
from libs.common.models import SearchResults

data = Console(highlight=False)
notices = Console(stderr=True, highlight=False)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_MARK = re.compile(r"<mark>(.*?)</mark>", re.DOTALL)
_ENTITIES = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#34;", '"'), ("&#x27;", "'"), ("&#39;", "'"))
STATUS_STYLES = {
    "ok": "green", "created": "green", "solved": "green",
    "degraded": "yellow", "pending": "yellow", "high": "yellow",
    "failed": "red", "error": "red", "urgent": "bold red", "open": "cyan", "closed": "dim", "low": "dim",
}  # fmt: skip


def plain(text: str) -> str:
    """Text of strangers without anything that steers a terminal; line ends and tabs become spaces."""
    return _CONTROL.sub("·", text.replace("\r\n", " ").replace("\n", " ").replace("\t", " "))


def styled(word: str) -> Text:
    return Text(plain(word), style=STATUS_STYLES.get(word, ""))


def notice(message: str, style: str = "") -> None:
    notices.print(Text(message, style=style), soft_wrap=True)


def warning(message: str) -> None:
    notice(message, "yellow")


def fault(message: str) -> None:
    """The sentence a command ends with."""
    notices.print(Text.assemble(("relaydesk: ", "bold red"), message), soft_wrap=True)


def line(message: str) -> None:
    """One line of data. A closed pipe ends the program quietly, as the reader has what it wanted."""
    try:
        sys.stdout.write(message + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OK)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rows = task.fields.get("rows", 0)
        seconds = task.elapsed or 0
        rate = f"{rows / seconds:,.0f} rows/s" if seconds > 0 and rows else ""
        return Text(f"{rows:,} rows {rate}", style="cyan")


def progress() -> Progress:
    """A bar on standard error; tasks carry the field `rows`. Silent when that is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        _Rate(),
        console=notices,
        disable=not notices.is_terminal,
    )


def search_results(found: SearchResults) -> None:
    table = Table(box=None, pad_edge=False)
    for column, options in (("number", "right"), ("status", "left"), ("priority", "left"), ("ticket", "left")):
        table.add_column(column, justify=options)  # type: ignore[arg-type] # a literal of rich's
    for result in found.results:
        ticket = result.ticket
        title, highlight = Text(plain(ticket.title), style="bold"), _highlight(result.highlight)
        text = highlight if highlight.plain == title.plain else Text("\n").join((title, highlight))
        table.add_row(f"#{ticket.number}", styled(ticket.status), styled(ticket.priority), text)
    if found.results:
        data.print(table)
    notice(f"{len(found.results)} found in {found.took_ms:.1f} ms")


def _highlight(html: str) -> Text:
    """The text of a highlight with its marks in yellow."""
    text = Text()
    for position, part in enumerate(_MARK.split(html)):
        for entity, character in _ENTITIES:
            part = part.replace(entity, character)  # noqa: PLW2901 (the same part, entity by entity)
        text.append(plain(part.replace("&amp;", "&")), style="yellow" if position % 2 else "dim")
    return text


def health(report: Health) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("check", "status", "ms", "detail"):
        table.add_column(column, justify="right" if column == "ms" else "left")
    for check in report.checks:
        table.add_row(plain(check.name), styled(check.status), _milliseconds(check), plain(check.detail or ""))
    data.print(Text.assemble("platform: ", styled(report.status)))
    data.print(table)


def _milliseconds(check: HealthCheck) -> str:
    return "" if check.duration_ms is None else f"{check.duration_ms:.1f}"


def cache_figures(figures: CacheFigures) -> None:
    l1, l2 = figures.l1, figures.l2
    told = [
        ("process", str(figures.process)),
        ("L1 (its memory)", f"{l1.entries:,} of {l1.limit:,} entries" + ("" if l1.listening else ", not listening")),
        ("L2 (Redis)", "does not answer"),
        ("loads under way", f"{figures.loads_under_way:,}"),
        ("hit rate", _percent(figures.hit_rate)),
    ]
    if l2 is not None:
        limit = f" of {_megabytes(l2.limit_bytes)}" if l2.limit_bytes is not None else ""
        told[2] = ("L2 (Redis)", f"{l2.keys:,} keys, {_megabytes(l2.used_bytes)}{limit}, {l2.evicted:,} evicted")
    pairs(told)
    reads = Table(box=None, pad_edge=False)
    for column in ("reads of", "L1 hits", "L2 hits", "misses", "hit rate"):
        reads.add_column(column, justify="left" if column == "reads of" else "right")
    for one in figures.reads:
        counts = (f"{count:,}" for count in (one.l1_hits, one.l2_hits, one.misses))
        reads.add_row(plain(one.key_type), *counts, _percent(one.hit_rate))
    data.print("", reads, sep="\n")
    hottest = Table(box=None, pad_edge=False)
    for column in ("hits", "role", "hottest keys"):
        hottest.add_column(column, justify="right" if column == "hits" else "left", overflow="fold")
    for key in figures.hottest:
        hottest.add_row(f"{key.hits:,}", plain(key.role), Text(plain(key.path)))
    if figures.hottest:
        data.print("", hottest, sep="\n")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _megabytes(count: int) -> str:
    return f"{count / 1_000_000:,.1f} MB"


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """A result of named values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    data.print(table)


def peak_memory() -> int:
    """Bytes of memory this process held at most.

    VmHWM of proc(5): getrusage's figure would include what the parent held before exec.
    """
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith("VmHWM:"):
            return int(entry.split()[1]) * 1024
    return 0

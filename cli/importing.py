"""`relaydesk import`: rows of a file become tickets."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import msgspec

from cli import output
from cli.client import Patience, connect, connect_check
from cli.credentials import Target
from cli.errors import Exit, UsageError
from cli.identities import Identities
from cli.mapping import Mapped, Refusal, choose
from cli.readers import Format, OpenFile, detect_format, open_rows
from cli.rows import BadRow, Row
from cli.sending import EncodedTicket, Sender, batches
from libs.common.models import BulkResult, Status

STATUS_COLUMNS = ("status", "state")
NOT_OPEN = {*Status} - {Status.OPEN} | {"resolved", "done"}
SHOWN_REFUSALS = 20
SAMPLE_ROWS = 100
SAMPLE_CHARACTERS = 1_048_576


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`retry_seconds` bounds one outage of the platform."""

    file: Path
    organization: str
    mapping: Mapping[str, str]
    file_format: Format | None = None
    dry_run: bool = False
    report: Path | None = None
    batch: int = 200
    parallel: int = 4
    retry_seconds: float = 300.0
    as_json: bool = False


class RefusedRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the report."""

    line: int
    reason: str
    last_line: int | None = None


class Summary(msgspec.Struct, kw_only=True):
    """What `--json` prints.

    `complete` is false when the import stopped early; `valid` rows passed the check that a dry run makes; `reopened`
    of them are of something that is not open where it comes from (columns `status` and `state`), and open tickets here.
    """

    file: str
    organization: str
    dry_run: bool
    complete: bool = False
    rows: int = 0
    valid: int = 0
    created: int = 0
    exists: int = 0
    refused: int = 0
    reopened: int = 0
    refused_rows: list[RefusedRow] = []
    seconds: float = 0.0
    peak_memory_bytes: int = 0


class Import:
    """One run over one file."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._started = time.monotonic()
        self._report: TextIO | None = None
        self._sender: Sender | None = None
        self._status_columns: list[str] = []
        self.summary = Summary(file=str(options.file), organization=options.organization, dry_run=options.dry_run)

    async def run(self, target: Target | None) -> Exit:
        """Read the whole file; `target` is None for a dry run, which needs no platform.

        Raises:
            CommandError: see `cli.errors`; `finish` tells afterwards how far it came.
        """
        options = self._options
        with open_rows(options.file, options.file_format or detect_format(options.file)) as source:
            rows, columns = _sample(source)
            choice = choose(options.mapping, columns, described=_is_described(options))
            with self._open_report(), Identities() as identities, output.progress() as bar:
                task = bar.add_task(options.file.name, total=source.size, rows=0)

                def on_turn() -> None:
                    bar.update(task, completed=source.position(), rows=self.summary.rows)

                self._status_columns = [name for name in columns if name.strip().lower() in STATUS_COLUMNS]
                tickets = self._tickets(rows, choice, identities)
                if target is None:
                    for _ticket in tickets:
                        if self.summary.rows % options.batch == 0:
                            on_turn()
                            await asyncio.sleep(0)  # where Ctrl-C takes effect
                else:
                    await self._send(target, tickets, on_turn)
                on_turn()
        self.summary.complete = True
        return Exit.REFUSED if self.summary.refused else Exit.OK

    async def _send(self, target: Target, tickets: Iterable[EncodedTicket | None], on_turn: Callable[[], None]) -> None:
        options = self._options
        async with connect(target.url, target.api_key) as api:
            patience = Patience(options.retry_seconds, output.warning)
            await patience.run(lambda: connect_check(api, target, options.organization))
            self._sender = Sender(api, patience, options.parallel, self._on_result)
            await self._sender.run(batches(tickets, options.batch), on_turn)

    def _tickets(
        self, rows: Iterable[Row | BadRow], choice: Mapped, identities: Identities
    ) -> Iterator[EncodedTicket | None]:
        for row in rows:
            self.summary.rows += 1
            if isinstance(row, BadRow):
                self._refuse(row.line, row.reason, row.last_line if row.last_line > row.line else None)
                yield None
                continue
            try:
                ticket = choice.ticket(row.values)
                if ticket.external_id is None:
                    ticket = msgspec.structs.replace(ticket, external_id=identities.of(row.values))
                self.summary.valid += 1
                if any(row.values.get(name, "").strip().lower() in NOT_OPEN for name in self._status_columns):
                    self.summary.reopened += 1
                yield EncodedTicket(row.line, msgspec.json.encode(ticket))
            except Refusal as refusal:
                self._refuse(row.line, str(refusal))
                yield None

    def _on_result(self, ticket: EncodedTicket, result: BulkResult) -> None:
        if result.status == "created":
            self.summary.created += 1
        elif result.status == "exists":
            self.summary.exists += 1
        else:
            problem = result.problem
            self._refuse(ticket.line, (problem.detail or problem.title) if problem else result.status)

    def _refuse(self, line: int, reason: str, last_line: int | None = None) -> None:
        self.summary.refused += 1
        refused = RefusedRow(line, reason, last_line)
        if self._report is not None:
            self._report.write(msgspec.json.encode(refused).decode() + "\n")
        if len(self.summary.refused_rows) < SHOWN_REFUSALS:
            self.summary.refused_rows.append(refused)
            output.notice(f"line {line}: {output.plain(reason)}", "red")
        elif self.summary.refused == SHOWN_REFUSALS + 1:
            where = f"all of them stand in {self._options.report}" if self._report else "--report FILE holds all"
            output.notice(f"… and more refused rows; {where}", "red")

    def _open_report(self) -> TextIO:
        """The report's file, or a place that forgets."""
        path = self._options.report or Path("/dev/null")
        try:
            if path.exists() and path.samefile(self._options.file):
                raise UsageError(f"--report {path} is the file to be imported.")
            file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"The report {path} cannot be written: {error.strerror}.") from error
        self._report = file if self._options.report else None
        return file

    @property
    def started(self) -> bool:
        """Whether a row has been looked at, so that there is something to tell."""
        return self.summary.rows > 0

    def how_to_go_on(self) -> str:
        """How far an import came that did not end by itself, and how the rest gets in."""
        if self._sender is None:
            return "Nothing was written."
        summary = self.summary
        return (
            f"Everything up to line {self._sender.done_through()} was answered for ({summary.created:,} created, "
            f"{summary.exists:,} known already, {summary.refused:,} refused). Run the same command again to go "
            "on: rows that are in already are recognised, no duplicates arise."
        )

    def finish(self) -> None:
        """Show the result."""
        summary = self.summary
        summary.seconds = round(time.monotonic() - self._started, 3)
        summary.peak_memory_bytes = output.peak_memory()
        if summary.reopened:
            output.warning(
                f"{summary.reopened:,} rows are not open where they come from ({' or '.join(self._status_columns)}). "
                "Statuses are not imported: each is an open ticket here."
            )
        if self._options.as_json:
            output.line(msgspec.json.encode(summary).decode())
            return
        counts: Sequence[tuple[str, int]] = (
            (("valid", summary.valid),)
            if summary.dry_run
            else (("created", summary.created), ("exists", summary.exists))
        )
        output.pairs(
            [
                ("rows", f"{summary.rows:,}"),
                *((name, f"{count:,}") for name, count in (*counts, ("refused", summary.refused))),
                ("time", f"{summary.seconds:.1f} s ({summary.rows / max(summary.seconds, 1e-3):,.0f} rows/s)"),
                ("peak memory", f"{summary.peak_memory_bytes / 1e6:.0f} MB"),
            ]
        )


def _is_described(options: Options) -> bool:
    """A GitHub issue has a text of its own; its other columns go to the fields alone."""
    return (options.file_format or detect_format(options.file)) is not Format.GITHUB


def _sample(source: OpenFile) -> tuple[Iterator[Row | BadRow], list[str]]:
    """All rows, and the columns: of JSON Lines those of the first rows."""
    rows = iter(source.reader)
    if source.reader.columns is not None:
        return rows, source.reader.columns
    first: list[Row | BadRow] = []
    columns: dict[str, None] = {}
    size = 0
    for row in rows:
        first.append(row)
        if isinstance(row, Row):
            columns.update(dict.fromkeys(row.values))
            size += sum(map(len, row.values.values()))
        if len(first) == SAMPLE_ROWS or size > SAMPLE_CHARACTERS:
            break

    def again() -> Iterator[Row | BadRow]:
        while first:
            yield first.pop(0)
        yield from rows

    return again(), list(columns)

"""The `relaydesk` command: arguments in, exit code out. What the commands do stands in the modules beside."""

import asyncio
import secrets
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from cli import caching, importing, output, seeding
from cli.client import connect
from cli.credentials import DEFAULT_URL, Target, find, find_url
from cli.errors import CommandError, Exit, StoppedError, UnreachableError, WrongServerError
from cli.mapping import parse_options
from cli.readers import Format
from libs.common.models import BULK_ROWS

T = TypeVar("T")

HELP = f"""Work with a Relaydesk platform from the command line.

The platform's address is --url or RELAYDESK_URL, the API key --api-key or RELAYDESK_API_KEY; what is not given is
taken from .local/demo.json of the current checkout, where `make run` leaves both (else the address is {DEFAULT_URL}).
Prefer the variable for a key: arguments can be seen by other users of the machine. Data goes to standard output,
progress and notices to standard error.

Exit codes: 0 done · 1 something was refused, or the platform is degraded · 2 the arguments or the file cannot be
used · 3 not authorised · 4 the platform cannot be reached · 130 stopped by Ctrl-C.
"""

app = typer.Typer(
    help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown", add_completion=False
)
cache_app = typer.Typer(help="Look into the gateway's cache and clear it.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="RELAYDESK_URL", help="Address of the gateway.", show_default=False),
]
Key = Annotated[
    str | None,
    typer.Option("--api-key", envvar="RELAYDESK_API_KEY", help="API key, rdk_….", show_default=False),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Say which address and key are used.")]
RetryFor = Annotated[float, typer.Option(min=0, help="Seconds to wait for a platform that is away before giving up.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


@app.command(
    "import", epilog="Example: `relaydesk import complaints.csv --organization demo --map title=issue --dry-run`"
)
def import_(
    file: Annotated[Path, typer.Argument(help="CSV with a header, JSON Lines, or a GitHub issues array.")],
    *,
    organization: Annotated[str, typer.Option(help="Slug of the organization the key must belong to.")],
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="TARGET=COLUMN",
            help="Column for title, description, priority or external_id; repeat it for each. "
            "A column of the target's own name needs no --map.",
        ),
    ] = None,
    file_format: Annotated[
        Format | None, typer.Option("--format", help="Format; else told from .csv, .jsonl, .ndjson or .json.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every row, send nothing.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write all refused rows here, one JSON object a line.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=BULK_ROWS, help="Rows of one request, at most.")] = 200,
    parallel: Annotated[int, typer.Option(min=1, max=32, help="Requests under way at a time.")] = 4,
    retry_for: RetryFor = 300.0,
    url: Url = None,
    api_key: Key = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Create tickets from a file, as a stream. Every ticket is open: a row's status or state is not imported.

    Columns that are not mapped are kept in the ticket's fields and, but for GitHub, in its description as
    `name: value` lines; what fields cannot hold (values over 1,000 characters, more than 50 columns) stands in the
    description only.

    Running it again creates no duplicates: a ticket's external id is the mapped external_id column, else
    github:OWNER/REPO#NUMBER, else a hash of the row's content with its occurrence number, so two identical rows are
    two tickets. A row that changed is a new ticket.
    """
    options = importing.Options(
        file=file,
        organization=organization,
        mapping=parse_options(mapping or []),
        file_format=file_format,
        dry_run=dry_run,
        report=report,
        batch=batch,
        parallel=parallel,
        retry_seconds=retry_for,
        as_json=as_json,
    )
    job = importing.Import(options)
    try:
        code = _run(job.run(None if dry_run else _target(url, api_key, verbose=verbose)))
    except CommandError as error:
        if job.started:
            output.fault(str(error))
            output.notice(job.how_to_go_on())
            job.finish()
            raise typer.Exit(error.exit_code) from error
        raise
    job.finish()
    raise typer.Exit(code)


@app.command(epilog="Example: `relaydesk seed --tickets 1000 --organization demo`")
def seed(
    *,
    tickets: Annotated[int, typer.Option(min=1, max=10_000_000, help="How many tickets.")],
    organization: Annotated[str | None, typer.Option(help="Slug the key must belong to.")] = None,
    number: Annotated[
        int | None,
        typer.Option("--seed", help="The same number gives the same tickets, created once. Default: a random one."),
    ] = None,
    retry_for: RetryFor = 300.0,
    url: Url = None,
    api_key: Key = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Create realistic demo tickets."""
    options = seeding.Options(
        count=tickets,
        seed=secrets.randbelow(1_000_000) if number is None else number,
        organization=organization,
        retry_seconds=retry_for,
        as_json=as_json,
    )
    raise typer.Exit(_run(seeding.run(_target(url, api_key, verbose=verbose), options)))


@app.command(epilog="Example: `relaydesk watch --json --count 1`")
def watch(
    *,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many events.")] = None,
    until_idle: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="End after so long without an event.")
    ] = None,
    url: Url = None,
    api_key: Key = None,
    verbose: Verbose = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one event a line as JSON.")] = False,
) -> None:
    """Show the organization's events as they happen. Ctrl-C ends it."""
    from cli import watching  # noqa: PLC0415 (Socket.IO takes long to import, and no other command needs it)

    options = watching.Options(as_json=as_json, count=count, idle_seconds=until_idle)
    try:
        _run(watching.run(_target(url, api_key, verbose=verbose), options))
    except StoppedError:
        raise typer.Exit(Exit.OK) from None


@app.command(epilog="Example: `relaydesk search 'invoice wrong amount' --limit 5`")
def search(
    query: Annotated[str, typer.Argument(help='Words, "a phrase", -without, or a ticket\'s number.')],
    *,
    limit: Annotated[int, typer.Option(min=1, max=50, help="How many results, at most.")] = 20,
    url: Url = None,
    api_key: Key = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Find tickets by their text."""

    async def run(target: Target) -> None:
        async with connect(target.url, target.api_key) as api:
            found, raw = await api.search(query, limit)
        if as_json:
            output.line(raw.decode())
        else:
            output.search_results(found)

    _run(run(_target(url, api_key, verbose=verbose)))


@app.command(epilog="Example: `relaydesk health --json`")
def health(*, url: Url = None, as_json: AsJson = False) -> None:
    """Check the platform: exit 0 when all is well, 1 when it is degraded or cannot be reached."""

    async def run() -> Exit:
        async with connect(find_url(url, Path.cwd()), None) as api:
            report, raw = await api.health()
        if as_json:
            output.line(raw.decode())
        else:
            output.health(report)
        return Exit.OK if report.status == "ok" else Exit.REFUSED

    try:
        code = _run(run())
    except (UnreachableError, WrongServerError) as error:
        raise CommandError(str(error)) from error
    raise typer.Exit(code)


@cache_app.command(epilog="Example: `relaydesk cache stats --json`")
def stats(*, url: Url = None, api_key: Key = None, verbose: Verbose = False, as_json: AsJson = False) -> None:
    """Show what the cache holds and how often it answers; for admins.

    Each gateway process has a memory of its own (L1) and counts for itself; the figures are of the one that answers.
    Redis (L2) is shared by all. The hottest keys are those of the key's organization.
    """
    _run(caching.stats(_target(url, api_key, verbose=verbose), as_json=as_json))


@cache_app.command(epilog="Example: `relaydesk cache clear --tag tickets --yes`")
def clear(
    *,
    tag: Annotated[
        str | None,
        typer.Option(help="`tickets` (lists), `search` (results), or `ticket:ID` with its comments and history."),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Answers whose path and query begin so, as `stats` shows them: /api/tickets?…")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    api_key: Key = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Clear what is cached for the key's organization; for admins.

    Without --tag or --prefix it is everything. The audit log says who cleared what. Nothing is lost: answers are
    loaded again, which makes the next of them slower.
    """
    wanted = caching.parse(tag, prefix)
    target = _target(url, api_key, verbose=verbose)
    if not yes:
        _run(caching.confirm(target, wanted))
    _run(caching.clear(target, wanted, as_json=as_json))


def _target(url: str | None, api_key: str | None, *, verbose: bool) -> Target:
    target = find(url, api_key, Path.cwd())
    if verbose:
        output.notice(f"Using {target.url} with the key from {target.source}.")
    return target


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise StoppedError("Stopped by Ctrl-C.") from None


def main() -> NoReturn:
    """Run the command that `sys.argv` names and exit."""
    try:
        app()
    except CommandError as error:
        output.fault(str(error))
        sys.exit(error.exit_code)
    sys.exit(Exit.OK)

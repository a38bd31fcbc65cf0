"""The launcher behind `make run`: `python -m infra.local up|status|logs|stop|clean`."""

import asyncio
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infra.local.credentials import SERVICES
from infra.local.errors import LauncherError, first_cause, from_os_error
from infra.local.follow import follow
from infra.local.runfile import FolderLock, end_leftovers, find, launcher_pid, read_run

DEFAULT_ROOT = Path(__file__).resolve().parents[2] / ".local"
NOT_RUNNING = 3
STOP_PATIENCE_SECONDS = 120
"""Longer than all parts together may take."""

app = typer.Typer(add_completion=False, no_args_is_help=True)
root = DEFAULT_ROOT
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


@app.callback()
def choose_folder(
    folder: Annotated[Path, typer.Option("--root", help="Folder of the stack.")] = DEFAULT_ROOT,
) -> None:
    """The embedded stack: real servers and the services of Relaydesk on this machine."""
    global root  # noqa: PLW0603 (the error handler outside of all commands needs it as well)
    root = folder.absolute()


@app.command()
def up(
    servers_only: Annotated[bool, typer.Option(help="Start no services; run them yourself.")] = False,  # noqa: FBT002
) -> None:
    """Start everything and keep it running until Ctrl-C."""
    from infra.local.up import up as run_stack  # noqa: PLC0415 (drivers take a second; `status` needs none)

    services = () if servers_only else SERVICES
    asyncio.run(run_stack(root, os.environ, console, services))


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,  # noqa: FBT002
) -> None:
    """Show what runs; exit code 3 when nothing does."""
    run = read_run(root)
    running = launcher_pid(root) is not None
    parts = run["parts"] if running or _leftovers(run) else {}
    for part in parts.values():
        if find(part) is None:
            part |= {"pid": None, "started": None}
    if as_json:
        console.print_json(json.dumps({"running": running, "parts": parts, "external": run["external"]}))
    elif parts:
        console.print(_table(parts, run["external"]))
    if not running:
        if not as_json:
            left = f" {_leftovers(run)} processes of an earlier run do; `make stop` ends them."
            console.print(f"Nothing runs in this folder.{left if _leftovers(run) else ' Start it: make run'}")
        raise typer.Exit(NOT_RUNNING)


@app.command()
def stop() -> None:
    """Stop everything and wait until it is gone."""
    pid = launcher_pid(root)
    run = read_run(root)
    if pid is None:
        ended = asyncio.run(end_leftovers(root))
        left = f"{ended} processes of an earlier run have been ended" if ended else "nothing was running"
        console.print(f"Stopped: {left}.")
        return
    begun = time.monotonic()
    launcher = find(run["launcher"])
    if launcher is not None:
        launcher.terminate()
    while launcher_pid(root) is not None or _leftovers(run):
        if time.monotonic() - begun > STOP_PATIENCE_SECONDS:
            raise LauncherError(
                f"The launcher (pid {pid}) did not stop within {STOP_PATIENCE_SECONDS} s.", root / "logs"
            )
        time.sleep(0.1)
    console.print(f"Stopped after {time.monotonic() - begun:.1f} s.")


@app.command()
def logs(
    part: Annotated[str | None, typer.Argument(help="Only this part, such as kafka or tickets.")] = None,
    follow_on: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on with new lines.")] = True,  # noqa: FBT002
) -> None:
    """Show the logs of all parts, each line with the name of its part."""
    with contextlib.suppress(KeyboardInterrupt):
        follow(root / "logs", part, console, forever=follow_on)


@app.command()
def clean() -> None:
    """Remove the data, logs and passwords of this checkout's stack."""
    from infra.local.stack import remove_stack  # noqa: PLC0415 (see up)

    if not root.exists():
        console.print("There is nothing to remove.")
        return
    lock = FolderLock(root)
    try:
        lock.take()
    except LauncherError:
        raise LauncherError("The stack is running; stop it first: make stop") from None
    asyncio.run(end_leftovers(root))
    remove_stack(root)
    lock.release()
    console.print(f"Removed the data in {root}.")


def _leftovers(run: dict[str, Any]) -> int:
    return sum(find(part) is not None for part in run["parts"].values())


def _table(parts: dict[str, Any], external: dict[str, str]) -> Table:
    table = Table("part", "state", "pid", "port", "uptime", box=None, pad_edge=False)
    for name, part in parts.items():
        pid = str(part["pid"] or "")
        table.add_row(name, part["state"], pid, str(part["port"]), _uptime(part["started"]))
    for name, address in external.items():
        table.add_row(name, "external", "", address, "")
    return table


def _uptime(started: float | None) -> str:
    """How long something has run that started at this time (seconds since the epoch)."""
    if started is None:
        return ""
    minutes, seconds = divmod(int(max(0, time.time() - started)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """Whatever goes wrong ends as one sentence and exit code 1; a defect's traceback goes to the log."""
    try:
        yield
    except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001 (the outermost place)
        cause = first_cause(raised)
        if isinstance(cause, OSError):
            cause = from_os_error(cause, "use a file")
        if not isinstance(cause, LauncherError):
            log = root / "logs" / "launcher.log"
            with contextlib.suppress(OSError), log.open("a") as file:
                traceback.print_exception(cause, file=file)
            cause = LauncherError(f"The launcher has a defect: {type(cause).__name__}: {cause}.", log)
        with contextlib.suppress(OSError):
            errors.print(str(cause), style="red", soft_wrap=True, markup=False)
        sys.exit(1)


def main() -> None:
    """Run the command line."""
    with _one_sentence():
        app(prog_name="python -m infra.local")


if __name__ == "__main__":
    main()

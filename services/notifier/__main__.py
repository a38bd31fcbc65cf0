"""`python -m services.notifier serve`."""

import functools
import os
import sys

import typer

from libs.common.service import serve as run_service
from libs.common.settings import SettingsError, load
from services.notifier.app import NAME, build_app
from services.notifier.settings import Settings

cli = typer.Typer(no_args_is_help=True, add_completion=False)


@cli.callback()
def main() -> None:
    """Real time: ticket events to Socket.IO clients."""


@cli.command()
def serve() -> None:
    """Serve until SIGTERM."""
    try:
        settings = load(Settings, os.environ, prefix="NOTIFIER_")
    except SettingsError as error:
        sys.exit(str(error))
    run_service(NAME, functools.partial(build_app, settings), settings, host=settings.host, port=settings.port)


if __name__ == "__main__":
    cli()

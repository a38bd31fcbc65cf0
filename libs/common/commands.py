"""What the services' command lines share: a plain sentence and an exit code instead of a traceback."""

import asyncio
import os
from pathlib import Path
from typing import Annotated, TypeVar

import asyncpg
import typer

from libs.common import migrations, settings
from libs.common.postgres import UNAVAILABLE_ERRORS

S = TypeVar("S")
EXIT_SETTINGS = 2
EXIT_FAILED = 3


def command_group(purpose: str) -> typer.Typer:
    """The commands of one service; `purpose` is what its `--help` says first."""
    group = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

    def describe() -> None: ...

    describe.__doc__ = f"{purpose} Settings come from the environment (docs/configuration.md)."
    group.callback()(describe)
    return group


def load_settings(settings_type: type[S], *, service: str) -> S:
    """The service's settings; exits with 2 and every reason when the environment does not hold them."""
    try:
        return settings.load(settings_type, os.environ, prefix=f"{service.upper()}_")
    except settings.SettingsError as error:
        typer.echo(f"The {service} service cannot start:\n{error}", err=True)
        raise typer.Exit(EXIT_SETTINGS) from error


WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=64, metavar="N", help="Processes that share the port, instead of what the environment says."
    ),
]
PhaseOption = Annotated[
    migrations.Phase | None,
    typer.Option(
        help="`before`: what the new version needs, while the old one still runs. `after`: what only the old one "
        "needed, when none of it runs any more. Both unless told."
    ),
]


def migrate(url: str, folder: Path, phase: migrations.Phase | None) -> None:
    """Bring a database's schema up to this version and say what was done; exits with 3 when that fails."""
    phases = frozenset([phase] if phase else migrations.Phase)
    try:
        applied = asyncio.run(migrations.migrate(url, folder, phases))
    except (migrations.SchemaError, asyncpg.PostgresError, *UNAVAILABLE_ERRORS) as error:
        typer.echo(f"The migration failed: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error
    typer.echo(f"Applied {', '.join(applied)}." if applied else "The schema is up to date.")

"""`python -m services.search`: serve, migrate."""

import asyncio
import os
import sys
from typing import TypeVar

import asyncpg
import typer

from libs.common import migrations, settings
from libs.common.service import serve
from services.search.app import build_app
from services.search.paths import MIGRATIONS
from services.search.settings import PREFIX, DatabaseSettings, Settings

S = TypeVar("S")
EXIT_SETTINGS = 2
EXIT_FAILED = 3

commands = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="The search service: the index, and the cache told. Settings come from the environment.",
)


def _load(settings_type: type[S]) -> S:
    try:
        return settings.load(settings_type, os.environ, prefix=PREFIX)
    except settings.SettingsError as error:
        print(f"The search service cannot start:\n{error}", file=sys.stderr)
        raise typer.Exit(EXIT_SETTINGS) from error


@commands.command("serve")
def serve_command() -> None:
    """Serve HTTP, index events and invalidate cached answers."""
    loaded = _load(Settings)
    try:
        serve("search", lambda: build_app(loaded), loaded, host=loaded.host, port=loaded.port)
    except migrations.SchemaError as error:
        print(f"The search service cannot start: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from error


@commands.command("migrate")
def migrate_command() -> None:
    """Bring the database's schema up to this version. Safe to run again."""
    url = _load(DatabaseSettings).owner_url
    try:
        applied = asyncio.run(migrations.migrate(url, MIGRATIONS))
    except (migrations.SchemaError, asyncpg.PostgresError, OSError) as error:
        print(f"The migration failed: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from error
    print(f"Applied {', '.join(applied)}." if applied else "The schema is up to date.")


if __name__ == "__main__":
    commands()

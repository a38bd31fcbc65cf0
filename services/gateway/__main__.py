"""`python -m services.gateway`: serve, openapi."""

import os
import sys

import msgspec
import typer

from libs.common import settings
from libs.common.service import serve
from services.gateway import openapi
from services.gateway.app import build_app
from services.gateway.settings import PREFIX, Settings

EXIT_SETTINGS = 2

commands = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The gateway: what API clients and browsers talk to. Settings come from the environment.",
)


@commands.command("serve")
def serve_command() -> None:
    """Serve the public API."""
    try:
        loaded = settings.load(Settings, os.environ, prefix=PREFIX)
    except settings.SettingsError as error:
        print(f"The gateway cannot start:\n{error}", file=sys.stderr)
        raise typer.Exit(EXIT_SETTINGS) from error
    serve("gateway", lambda: build_app(loaded), loaded, host=loaded.host, port=loaded.port)


@commands.command("openapi")
def openapi_command() -> None:
    """Print the OpenAPI document."""
    print(msgspec.json.format(msgspec.json.encode(openapi.document(), order="deterministic"), indent=2).decode())


if __name__ == "__main__":
    commands()

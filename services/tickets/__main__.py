"""`python -m services.tickets`: serve, relay, migrate, maintain, provision."""

import asyncio
import secrets
import sys
from typing import Annotated, Any

import asyncpg
import msgspec
import typer
from aiohttp import web

from libs.common import background, logs, migrations
from libs.common.commands import EXIT_FAILED, PhaseOption, WorkersOption, command_group, load_settings, migrate
from libs.common.models import Role
from libs.common.postgres import UNAVAILABLE_ERRORS
from libs.common.service import add_service_defaults
from libs.common.serving import serve
from services.tickets import partitions, people
from services.tickets.app import build_app
from services.tickets.database import Database
from services.tickets.paths import MIGRATIONS
from services.tickets.relay import Relay
from services.tickets.settings import DatabaseSettings, Settings

EXIT_EXISTS = 4

commands = command_group("The tickets service: the system of record.")


@commands.command("serve")
def serve_command(workers: WorkersOption = None) -> None:
    """Serve HTTP (and relay events, unless TICKETS_RELAY_EMBEDDED=false)."""
    loaded = load_settings(Settings, service="tickets")
    serve(
        "tickets",
        lambda: build_app(loaded),
        loaded,
        host=loaded.host,
        port=loaded.port,
        processes=workers or loaded.workers,
        metrics_port=loaded.metrics_port,
    )


@commands.command("relay")
def relay_command() -> None:
    """Publish the outbox to Kafka and nothing else. As many relays as you like share the work."""
    loaded = load_settings(Settings, service="tickets")

    def build_relay_app() -> web.Application:
        app = web.Application()
        add_service_defaults(app)
        relay = Relay(loaded)

        async def resources(_app: web.Application) -> Any:
            async with background.running("relay", relay.run):
                yield

        app.cleanup_ctx.append(resources)
        return app

    serve("tickets-relay", build_relay_app, loaded, host=loaded.host, port=loaded.port)


@commands.command("migrate")
def migrate_command(phase: PhaseOption = None) -> None:
    """Bring the database's schema up to this version. Safe to run again."""
    migrate(load_settings(DatabaseSettings, service="tickets").owner_url, MIGRATIONS, phase)


@commands.command("maintain")
def maintain_command() -> None:
    """Make partitions ahead and drop those whose time is over, once. `serve` does the same every hour."""
    loaded = load_settings(DatabaseSettings, service="tickets")
    logs.configure("tickets", level="warning", log_format="console", stream=sys.stderr)
    try:
        made, dropped = asyncio.run(partitions.maintain(loaded))
    except (*UNAVAILABLE_ERRORS, asyncpg.PostgresError) as error:
        print(f"The partitions were not maintained: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from error
    print(f"{made} partitions made, {dropped} dropped.")


@commands.command("provision")
def provision_command(
    organization: Annotated[str, typer.Option(help="Slug: lower-case letters, digits and hyphens.")],
    name: Annotated[str, typer.Option(help="The organization's name for people.")],
    user: Annotated[list[str], typer.Option(help="EMAIL:ROLE (admin or agent); may be given again.")],
    api_key_name: Annotated[str, typer.Option(help="What the first user's API key is called.")] = "first key",
) -> None:
    """Create an organization, its users with generated passwords, and an API key of the first user.

    Prints one JSON object with the credentials, which are told this once. Exits with 4 when the slug is taken.
    """
    loaded = load_settings(DatabaseSettings, service="tickets")
    logs.configure("tickets", level="warning", log_format="console", stream=sys.stderr)  # stdout is for the JSON
    new_users = [_new_user(text) for text in user]

    async def run() -> dict[str, Any]:
        async with Database.open(loaded) as database:
            created, users, key = await people.provision(
                database, slug=organization, name=name, users=new_users, key_name=api_key_name
            )
        return {
            "organization": created,
            "users": [
                {"id": made.id, "email": made.email, "role": made.role, "password": new.password}
                for made, new in zip(users, new_users, strict=True)
            ],
            "api_key": {"id": key.id, "name": key.name, "key": key.key},
        }

    try:
        made = asyncio.run(run())
    except people.SlugTaken as error:
        print(f"There is an organization {organization!r} already.", file=sys.stderr)
        raise typer.Exit(EXIT_EXISTS) from error
    except (migrations.SchemaError, *UNAVAILABLE_ERRORS, asyncpg.PostgresError) as error:
        print(f"The organization was not created: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from error
    print(msgspec.json.encode(made).decode())


def _new_user(text: str) -> people.NewUser:
    email, _, role = text.rpartition(":")
    if "@" not in email or role not in set(Role):
        raise typer.BadParameter(f"{text!r} is not EMAIL:ROLE with a role of {', '.join(Role)}.")
    return people.NewUser(email=email.lower(), role=Role(role), password=secrets.token_urlsafe(12))


if __name__ == "__main__":
    commands()

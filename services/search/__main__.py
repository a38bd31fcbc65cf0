"""`python -m services.search`: serve, migrate."""

from libs.common.commands import PhaseOption, WorkersOption, command_group, load_settings, migrate
from libs.common.serving import serve
from services.search.app import build_app
from services.search.paths import MIGRATIONS
from services.search.settings import DatabaseSettings, Settings

commands = command_group("The search service: the index, and the cache told.")


@commands.command("serve")
def serve_command(workers: WorkersOption = None) -> None:
    """Serve HTTP, index events and invalidate cached answers."""
    loaded = load_settings(Settings, service="search")
    serve(
        "search",
        lambda: build_app(loaded),
        loaded,
        host=loaded.host,
        port=loaded.port,
        processes=workers or loaded.workers,
        metrics_port=loaded.metrics_port,
    )


@commands.command("migrate")
def migrate_command(phase: PhaseOption = None) -> None:
    """Bring the database's schema up to this version. Safe to run again."""
    migrate(load_settings(DatabaseSettings, service="search").owner_url, MIGRATIONS, phase)


if __name__ == "__main__":
    commands()

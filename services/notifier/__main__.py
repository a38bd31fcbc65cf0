"""`python -m services.notifier`: serve."""

from libs.common.commands import command_group, load_settings
from libs.common.serving import serve
from services.notifier.app import NAME, build_app
from services.notifier.settings import Settings

commands = command_group("The notifier: ticket events to Socket.IO clients.")


@commands.command("serve")
def serve_command() -> None:
    """Serve Socket.IO and announce events."""
    loaded = load_settings(Settings, service=NAME)
    serve(NAME, lambda: build_app(loaded), loaded, host=loaded.host, port=loaded.port)


if __name__ == "__main__":
    commands()

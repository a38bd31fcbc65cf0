"""`python -m services.gateway`: serve, openapi."""

import msgspec

from libs.common.commands import WorkersOption, command_group, load_settings
from libs.common.serving import serve
from services.gateway.app import build_app
from services.gateway.description import openapi
from services.gateway.settings import Settings

commands = command_group("The gateway: what API clients and browsers talk to.")


@commands.command("serve")
def serve_command(workers: WorkersOption = None) -> None:
    """Serve the public API."""
    loaded = load_settings(Settings, service="gateway")
    serve(
        "gateway",
        lambda: build_app(loaded),
        loaded,
        host=loaded.host,
        port=loaded.port,
        processes=workers or loaded.workers,
        metrics_port=loaded.metrics_port,
    )


@commands.command("openapi")
def openapi_command() -> None:
    """Print the OpenAPI document."""
    print(msgspec.json.format(msgspec.json.encode(openapi.document(), order="deterministic"), indent=2).decode())


if __name__ == "__main__":
    commands()

"""The demo organization that the first start makes, so that a newcomer can sign in."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local.environment import without_password
from infra.local.errors import LauncherError
from infra.local.process import run
from infra.local.services import Service
from infra.local.stack import Stack
from infra.local.storage import read_json, write_private

ORGANIZATION = "demo"
USERS = ("admin@demo.example:admin", "agent@demo.example:agent")
EXISTS_ALREADY = 4


@dataclass(frozen=True)
class User:
    """Somebody who may sign in."""

    email: str
    role: str
    password: str


@dataclass(frozen=True)
class Demo:
    """Credentials to show; `note` says why some are missing."""

    organization: str
    users: list[User]
    api_key: str
    note: str = ""


async def ensure_demo(stack: Stack) -> Demo:
    """Make the organization unless it was made before; its credentials, the address too, stay in demo.json (0600)."""
    path = stack.root / "demo.json"
    # Credentials of another database (an external one given this time) would not work.
    database = without_password(stack.tickets_database_url) if stack.is_external("tickets") else "embedded"
    stored = read_json(path)
    if stored is None or stored.get("database") != database:
        made = await _provision(stack)
        if made is None:
            note = f"The organization `{ORGANIZATION}` was there already; its passwords are not known here."
            return Demo(ORGANIZATION, [], "", note)
        stored = {"database": database, **made}
    url = stack.service_url("gateway")  # the command line looks here for it
    if stored.get("url") != url:
        stored = {"url": url, **{name: value for name, value in stored.items() if name != "url"}}
        write_private(path, json.dumps(stored, indent=2))
    try:
        users = [User(user["email"], user["role"], user["password"]) for user in stored["users"]]
        return Demo(stored["organization"]["slug"], users, stored["api_key"]["key"])
    except (KeyError, TypeError):
        raise LauncherError(f"{path} is damaged; restore it, or start anew with `make clean`.") from None


async def _provision(stack: Stack) -> dict[str, Any] | None:
    tickets = stack.parts["tickets"]
    if not isinstance(tickets, Service):
        raise TypeError(tickets)
    users = [text for user in USERS for text in ("--user", user)]
    command = tickets.command_line(
        "provision", "--organization", ORGANIZATION, "--name", "Demo", *users, "--api-key-name", "demo"
    )
    output = stack.root / "provision.json"
    doing = "Creating the demo organization"
    try:
        write_private(output, "")
        code = await run(command, doing, stdout=output, allowed=(0, EXISTS_ALREADY))
        return None if code == EXISTS_ALREADY else _parse(output, command.log)
    finally:
        with contextlib.suppress(OSError):
            output.unlink()


def _parse(output: Path, log: Path) -> dict[str, Any]:
    try:
        made = json.loads(output.read_text())
    except ValueError:
        made = None
    if not isinstance(made, dict):
        raise LauncherError("Creating the demo organization failed: its answer is not JSON.", log)
    return made

"""Where `relaydesk` begins. Ctrl-C while the command still loads ends it as quietly as Ctrl-C later on."""

import sys
from typing import NoReturn

from cli.errors import Exit


def main() -> NoReturn:
    """Run the command that `sys.argv` names and exit."""
    try:
        from cli.app import main as run  # noqa: PLC0415 (what takes its time)

        run()
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)

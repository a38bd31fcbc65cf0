"""Small files of a stack: written whole or not at all, readable by their owner only."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from infra.local.errors import LauncherError


def write_private(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a file atomically; mode 0600 from its first byte on. Unless `replace`, an existing one stays."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        if replace:
            unfinished.replace(path)
        else:
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(unfinished)
    finally:
        unfinished.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None when there is no file; raises LauncherError for a damaged one."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise LauncherError(f"{path} is damaged; restore it, or start anew with `make clean`.")
    return value

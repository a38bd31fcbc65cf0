"""Running PostgreSQL when the launcher is root: it refuses root, so it gets an account of its own.

That account cannot traverse /root, where a checkout often lies, so its binaries and data live in
/var/lib/relaydesk.
"""

import contextlib
import hashlib
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from infra.local.errors import LauncherError

ACCOUNT = "relaydesk"
STATE_FOLDER = Path("/var/lib/relaydesk")
OWNER_FILE = "stack"  # in a data folder: the path of the stack that it belongs to


@dataclass(frozen=True)
class Account:
    """An unprivileged system account."""

    uid: int
    gid: int


def is_root() -> bool:
    return os.geteuid() == 0


def server_account() -> Account | None:
    """The account to run PostgreSQL under, made when missing; None when the launcher is not root."""
    if not is_root():
        return None
    try:
        entry = pwd.getpwnam(ACCOUNT)
    except KeyError:
        entry = _make_account()
    return Account(entry.pw_uid, entry.pw_gid)


def _make_account() -> pwd.struct_passwd:
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if useradd is None:
        raise LauncherError(
            "PostgreSQL cannot run as root and `useradd` is missing; "
            "install the package `passwd` or start as an ordinary user."
        )
    made = subprocess.run(
        [
            useradd,
            "--system",
            "--user-group",
            "--no-create-home",
            "--home-dir",
            str(STATE_FOLDER),
            "--shell",
            "/usr/sbin/nologin",
            ACCOUNT,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return pwd.getpwnam(ACCOUNT)  # another stack may have made it at the same moment
    except KeyError:
        raise LauncherError(f"Could not make the account `{ACCOUNT}` for PostgreSQL: {made.stderr.strip()}") from None


def data_folder(root: Path) -> Path:
    """Where the PostgreSQL data of the stack in `root` lives; outside of `root` only when root runs it."""
    if not is_root():
        return root / "postgres"
    return STATE_FOLDER / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]


def claim_data_folder(root: Path, account: Account | None) -> Path:
    """Make the data folder of the stack in `root`, private to the account."""
    folder = data_folder(root)
    folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if account is not None:
        os.chown(folder, account.uid, account.gid)
        (folder / OWNER_FILE).write_text(str(root.resolve()))
        _remove_orphans()
    return folder


def remove_data(root: Path) -> None:
    """Remove the PostgreSQL data of the stack in `root`, also when it lies outside."""
    shutil.rmtree(data_folder(root), ignore_errors=True)


def _remove_orphans() -> None:
    """Remove data of stacks whose folder is gone: nobody could find it any more."""
    for file in STATE_FOLDER.glob(f"*/{OWNER_FILE}"):
        with contextlib.suppress(OSError):
            if not Path(file.read_text()).exists():
                shutil.rmtree(file.parent)


def reachable_copy(sources: list[Path], name: str) -> Path:
    """A folder /var/lib/relaydesk/<name> with copies of `sources` that every account can read; made once."""
    target = STATE_FOLDER / name
    if not target.exists():
        STATE_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        unfinished = STATE_FOLDER / f"{name}.{os.getpid()}"
        try:
            for source in sources:
                shutil.copytree(source, unfinished / source.name, symlinks=True)
            _let_everybody_read(unfinished)
            try:
                unfinished.rename(target)
            except OSError:
                if not target.exists():  # else another stack was faster
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _let_everybody_read(folder: Path) -> None:
    """Undo a tight umask: read for all, and execute wherever the owner may."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o044 | (mode & 0o100) >> 3 | (mode & 0o100) >> 6)

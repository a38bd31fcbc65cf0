"""Kafka's jars: fetched from Maven coordinates once, verified against the committed lock file."""

import hashlib
import logging
import os
import shutil
import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local.errors import LauncherError, from_os_error

LOCK_FILE = Path(__file__).parent / "jgo.lock.toml"
DOWNLOADS_AT_ONCE = 8
ATTEMPTS = 3


@dataclass(frozen=True)
class Jar:
    """One locked artifact."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def path(self) -> Path:
        """Its place below a Maven repository folder."""
        name = f"{self.artifact}-{self.version}.jar"
        return Path(*self.group.split("."), self.artifact, self.version, name)


def read_lock(path: Path = LOCK_FILE) -> list[Jar]:
    """The jars in a jgo lock file, in class path order; raises LauncherError for one without checksums."""
    try:
        entries = tomllib.loads(path.read_text())["dependencies"]
        return [Jar(e["groupId"], e["artifactId"], e["version"], e["sha256"]) for e in entries]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise LauncherError(f"{path} is not a complete jgo lock file ({error}).") from error


def repository(fallback: Path) -> Path:
    """The user's Maven repository folder, or `fallback` where there can be none."""
    folder = Path(os.environ.get("M2_REPO") or Path.home() / ".m2" / "repository")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return fallback
    return folder if os.access(folder, os.W_OK) else fallback


def fetch(
    jars: list[Jar], folder: Path, progress: Callable[[int, int], None], cancelled: threading.Event
) -> list[Path]:
    """Paths of all jars below `folder`, downloaded where missing or damaged. Blocking.

    `progress` is called with (jars ready, jars in all). No download begins once `cancelled` is set.

    Raises:
        LauncherError: A download failed or its checksum is wrong.
    """
    missing = [jar for jar in jars if not _is_intact(folder / jar.path, jar.sha256)]
    if missing:
        logging.getLogger("jgo").setLevel(logging.CRITICAL)  # it reports every retry as an error
        done = len(jars) - len(missing)
        progress(done, len(jars))
        workshop = folder / ".relaydesk" / str(os.getpid())
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="jars") as pool:
            pending = [pool.submit(_download, jar, folder, workshop, cancelled) for jar in missing]
            try:
                for future in as_completed(pending):
                    future.result()
                    done += 1
                    progress(done, len(jars))
            finally:
                cancelled.set()
                pool.shutdown(cancel_futures=True)
                shutil.rmtree(workshop, ignore_errors=True)
    return [folder / jar.path for jar in jars]


def _download(jar: Jar, folder: Path, workshop: Path, cancelled: threading.Event) -> None:
    """Download one jar to `workshop` and move it to its place: no reader ever sees half a file."""
    from jgo.maven import MavenContext  # noqa: PLC0415 (slow to import, and only the first start needs it)

    context: Any = MavenContext(repo_cache=workshop)
    target = folder / jar.path
    failure = ""
    downloaded = workshop / jar.path
    for _ in range(ATTEMPTS):
        if cancelled.is_set():
            return
        downloaded.unlink(missing_ok=True)
        try:
            artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact(packaging="jar")
            artifact.resolve()
            if not _is_intact(downloaded, jar.sha256):
                failure = "its checksum is not the one in jgo.lock.toml"
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            downloaded.replace(target)
        except OSError as error:
            # requests' errors are OSErrors without a number
            if error.errno is not None:
                raise from_os_error(error, f"store {target.name}") from error
            failure = f"{type(error).__name__}, is the network there?"
        except RuntimeError as error:
            failure = str(error)
        else:
            return
    raise LauncherError(f"Could not download {target.name} of Apache Kafka: {failure}")


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False

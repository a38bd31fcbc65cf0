"""Make nginx forget the answers that have a surrogate key.

Open-source nginx cannot purge. Its cache is a folder of files that begin with the answer's head, and a file that is
gone is a miss; so those that name a key are deleted. An answer that was on its way meanwhile may hold what was true
before: a second pass, some seconds later, takes it as well.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

_HEAD_BYTES = 65_536


def purge(cache: Path, keys: Iterable[str]) -> int:
    """Delete what has one of the keys; how many files that were."""
    wanted = {key.encode() for key in keys}
    purged = 0
    for file in _files(cache):
        try:
            with file.open("rb") as opened:
                head = opened.read(_HEAD_BYTES)
            if not wanted.isdisjoint(surrogate_keys(head)):
                file.unlink()
                purged += 1
        except FileNotFoundError:  # nginx has replaced or removed it
            continue
    return purged


def surrogate_keys(cached: bytes) -> set[bytes]:
    """The keys in a cached answer: nginx's own words, `KEY: …`, then the head as the gateway sent it."""
    head = cached.partition(b"\nKEY: ")[2].partition(b"\r\n\r\n")[0]
    keys: set[bytes] = set()
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"surrogate-key":
            keys.update(value.split())
    return keys


def _files(cache: Path) -> Iterator[Path]:
    return (path for path in cache.rglob("*") if path.is_file())

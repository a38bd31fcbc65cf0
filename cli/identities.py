"""External ids for rows that bring none: stable over runs, and in bounded memory.

The id is a hash of the row's content and its occurrence number within the file: `row:<hash>:1` for the first row
with that content, `row:<hash>:2` for a second, identical one, which is a ticket of its own. So a second run over the
file finds all of its tickets again, also when rows were added, removed or moved in between; and a row that was
changed is a new ticket. The order of columns and the `--map` options do not matter.

Counting occurrences exactly needs a memory of every content seen. It is kept as 64-bit hashes in a private SQLite
database, which spills to a temporary file that is gone when the process ends (about 20 bytes a row), with a page
cache of fixed size. Should two contents collide in these 64 bits, the second merely starts at number 2, in every run.
"""

import hashlib
import sqlite3
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import msgspec

from cli.errors import CommandError

CACHE_KIBIBYTES = 16_384

COUNT_OCCURRENCE = """
insert into contents (hash, occurrences) values (?, 1)
on conflict (hash) do update set occurrences = occurrences + 1
returning occurrences
"""


class Identities:
    """Gives ids to rows in the order of the file."""

    def __init__(self) -> None:
        # An empty name is a temporary on-disk database: https://www.sqlite.org/inmemorydb.html#temp_db
        self._connection = sqlite3.connect("", isolation_level=None)
        for setting in ("journal_mode = off", "synchronous = off", f"cache_size = -{CACHE_KIBIBYTES}"):
            self._connection.execute(f"pragma {setting}")
        self._connection.execute("create table contents (hash integer primary key, occurrences integer not null)")
        self._connection.execute("begin")  # one transaction for all: a commit would write the pages out

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def of(self, values: Mapping[str, str]) -> str:
        """The id of the next row of the file.

        Raises:
            CommandError: when the temporary file cannot grow.
        """
        content = msgspec.json.encode(sorted(values.items()))
        digest = hashlib.blake2b(content, digest_size=16).digest()
        key = int.from_bytes(digest[:8], "big", signed=True)
        try:
            occurrence = self._connection.execute(COUNT_OCCURRENCE, (key,)).fetchone()[0]
        except sqlite3.Error as error:
            raise CommandError(
                f"The temporary file that tells identical rows apart cannot be written ({error}); "
                "SQLITE_TMPDIR names another folder for it."
            ) from error
        return f"row:{digest.hex()}:{occurrence}"

"""Lines of a text file with their numbers, in bounded memory whatever the file holds."""

import io

from cli.errors import UsageError

# Characters of one record. A ticket holds at most 65,536 in its description and 50,000 in its fields, so a
# longer record cannot become one; the usual cause is a quote that is never closed.
RECORD_CHARACTERS = 1_048_576


class RecordTooLongError(Exception):
    """The record that began at `Lines.first` has no end within RECORD_CHARACTERS."""


class Lines:
    r"""An iterator over the lines of a UTF-8 file (with or without a byte order mark), ends included.

    A line ends with \n (so \r\n too), or with \r in a file that begins like those of old spreadsheets, without any
    \n. Bytes that are not UTF-8 become lone surrogates and set `invalid` to the number of their line. The iterator
    survives the exceptions that it raises: the next line follows.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        beginning = file.peek(1)
        end = "\r" if b"\r" in beginning[:-1] and b"\n" not in beginning else "\n"
        self._text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=end)
        self._end = end
        self._room = RECORD_CHARACTERS
        self.number = 0
        self.first = 1
        self.invalid: int | None = None

    def begin_record(self) -> None:
        """The next line is the first of a record."""
        self.first = self.number + 1
        self._room = RECORD_CHARACTERS
        self.invalid = None

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        """Read one line.

        Raises:
            RecordTooLongError: and the rest of the line is skipped.
        """
        line = self._text.readline(RECORD_CHARACTERS)
        if not line:
            raise StopIteration
        self.number += 1
        if not line.isascii() and self.invalid is None and _has_invalid_bytes(line):
            self.invalid = self.number
        self._room -= len(line)
        if self._room < 0 or (len(line) == RECORD_CHARACTERS and not line.endswith(self._end)):
            while line and not line.endswith(self._end):
                line = self._text.readline(RECORD_CHARACTERS)
            raise RecordTooLongError
        return line


def _has_invalid_bytes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def refuse_utf16(name: str, beginning: bytes) -> None:
    """Tell the one other encoding that spreadsheets write apart.

    Raises:
        UsageError: when the file begins with a UTF-16 byte order mark.
    """
    if beginning[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise UsageError(f"{name} is UTF-16; please save it as UTF-8.")

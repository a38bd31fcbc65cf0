"""Rows with line numbers from CSV, JSON Lines and GitHub exports, read as a stream.

A row that cannot be read is a `BadRow` in its place in the stream; the rows after it are read all the same.
"""

import contextlib
import csv
import enum
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from cli.errors import UsageError
from cli.github import GitHubReader
from cli.lines import RECORD_CHARACTERS, Lines, RecordTooLongError, refuse_utf16
from cli.rows import BadRow, Row, cell


class Format(enum.StrEnum):
    CSV = "csv"
    JSONL = "jsonl"
    GITHUB = "github"


_SUFFIXES = {".csv": Format.CSV, ".jsonl": Format.JSONL, ".ndjson": Format.JSONL, ".json": Format.GITHUB}


class Reader(Protocol):
    """`columns` are all columns of the file, or None when every row may have its own."""

    columns: list[str] | None

    def __iter__(self) -> Iterator[Row | BadRow]: ...


class CsvReader:
    """RFC 4180 with a header line. Empty lines are passed over, as Python's csv.DictReader does."""

    def __init__(self, file: io.BufferedReader) -> None:
        """Read the header.

        Raises:
            UsageError: when there is none that can be read.
        """
        csv.field_size_limit(RECORD_CHARACTERS + 2)  # Lines sets the bound
        self._lines = Lines(file)
        # Strict, since otherwise a stray quote silently joins values or rows.
        self._parser = csv.reader(self._lines, strict=True)
        header = next(self._records(), None)
        if header is None:
            raise UsageError("The file has no header line.")
        if isinstance(header, BadRow):
            raise UsageError(f"The header (line {header.line}) cannot be read: {header.reason}.")
        self.columns: list[str] | None = _distinct(header)

    def __iter__(self) -> Iterator[Row | BadRow]:
        columns = self.columns or []
        width = len(columns)
        for record in self._records():
            if isinstance(record, BadRow):
                yield record
            elif len(record) != width:
                reason = f"{len(record)} values, but the header names {width} columns"
                yield BadRow(self._lines.first, reason, self._lines.number)
            else:
                yield Row(self._lines.first, dict(zip(columns, record, strict=True)))

    def _records(self) -> Iterator[list[str] | BadRow]:
        lines = self._lines
        while True:
            lines.begin_record()
            try:
                record = next(self._parser)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(lines.first, _csv_reason(str(error), lines), lines.number)
                continue
            except RecordTooLongError:
                yield BadRow(lines.first, _too_long(lines), lines.number)
                continue
            if lines.invalid is not None:
                reason = f"line {lines.invalid} holds bytes that are not UTF-8"
                yield BadRow(lines.first, reason, lines.number)
            elif record:
                yield record


class JsonLinesReader:
    """One JSON object a line; numbers keep the digits they are written with, nested values stay JSON text."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.columns: list[str] | None = None
        self._lines = Lines(file)
        self._decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])

    def __iter__(self) -> Iterator[Row | BadRow]:
        lines = self._lines
        while True:
            lines.begin_record()
            try:
                line = next(lines)
            except StopIteration:
                return
            except RecordTooLongError:
                yield BadRow(lines.first, _too_long(lines), lines.number)
                continue
            if lines.invalid is not None:
                yield BadRow(lines.first, "the line holds bytes that are not UTF-8", lines.number)
            elif not line.isspace():
                yield self._row(line)

    def _row(self, line: str) -> Row | BadRow:
        number = self._lines.number
        try:
            values = {name: _raw_cell(raw) for name, raw in self._decoder.decode(line).items()}
        except msgspec.ValidationError:
            return BadRow(number, "not a JSON object", number)
        except (msgspec.DecodeError, UnicodeError) as error:
            return BadRow(number, f"not valid JSON: {error}", number)
        return Row(number, values)


def _raw_cell(raw: msgspec.Raw) -> str:
    text = bytes(raw)
    if text[:1] == b'"' or text == b"null":
        return cell(msgspec.json.decode(text))
    return text.decode()


def _too_long(lines: Lines) -> str:
    reason = f"the row has no end within {RECORD_CHARACTERS:,} characters"
    if lines.number > lines.first:
        reason += f" (lines {lines.first} to {lines.number}); is a quote not closed?"
    return reason


def _csv_reason(error: str, lines: Lines) -> str:
    where = f" (lines {lines.first} to {lines.number})" if lines.number > lines.first else ""
    if error.startswith("unexpected end of data"):
        return f"a quote is opened and never closed{where}"
    if "expected after" in error:
        return f"text after a closing quote{where}; a quote inside a value must be written twice"
    if error.startswith("new-line character"):
        return f"a carriage return outside of quotes{where}"
    return f"{error}{where}"


def _distinct(header: list[str]) -> list[str]:
    """Name every column: `column 3` for an empty name, `state (2)` for a second `state`."""
    columns: list[str] = []
    for position, raw in enumerate(header, 1):
        name = wanted = raw.strip() or f"column {position}"
        count = 1
        while name in columns:
            count += 1
            name = f"{wanted} ({count})"
        columns.append(name)
    return columns


def detect_format(path: Path) -> Format:
    """Tell the format from the file's name.

    Raises:
        UsageError: when the ending is not a known one.
    """
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise UsageError(f"The format of {path.name} cannot be told from its name; give --format.")
    return found


class OpenFile(msgspec.Struct):
    """A file that is being read; `size` is None when it is a pipe."""

    reader: Reader
    size: int | None
    file: io.BufferedReader

    def position(self) -> int:
        """How many bytes have been read."""
        return self.file.tell() if self.size is not None else 0


@contextlib.contextmanager
def open_rows(path: Path, file_format: Format) -> Iterator[OpenFile]:
    """Open a file for reading rows.

    Raises:
        UsageError: when there is no such file, it cannot be read, or it is empty.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a file.")
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    with file:
        beginning = file.peek(4)
        if not beginning:
            raise UsageError(f"{path} is empty.")
        refuse_utf16(str(path), beginning)
        reader: Reader
        if file_format is Format.CSV:
            reader = CsvReader(file)
        elif file_format is Format.JSONL:
            reader = JsonLinesReader(file)
        else:
            reader = GitHubReader(file)
        yield OpenFile(reader, path.stat().st_size if path.is_file() else None, file)

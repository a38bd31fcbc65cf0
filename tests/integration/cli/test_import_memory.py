"""Memory does not grow with the file. tests/bench/import_memory.py shows the same for 1 GB."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest

MEGABYTE = 1_000_000
SIZE = 20 * MEGABYTE
ROOM = 12 * MEGABYTE  # over the peak for a tiny file: records of up to 1 M characters, SQLite's pages, malloc's slack
TEXT = "lorem ipsum dolor sit amet " * 40


def csv_file(file: TextIO, size: int) -> None:
    file.write("title,text\n")
    while file.tell() < size:
        file.writelines(f'number {file.tell()}-{row},"{TEXT}\n"\n' for row in range(100))


def json_lines(file: TextIO, size: int) -> None:
    while file.tell() < size:
        file.writelines(f'{{"title": "number {file.tell()}-{row}", "text": "{TEXT}"}}\n' for row in range(100))


def github_on_one_line(file: TextIO, size: int) -> None:
    file.write('[{"title": "first"}')
    while file.tell() < size:
        file.writelines(f', {{"title": "x", "body": "{TEXT}", "number": {row}}}' for row in range(100))
    file.write("]")


def quote_never_closed(file: TextIO, size: int) -> None:
    file.write('title,text\nx,"\n')
    while file.tell() < size:
        file.write(f"x,{TEXT}\n" * 100)


def one_endless_line(file: TextIO, size: int) -> None:
    file.write("title,text\n")
    while file.tell() < size:
        file.write(TEXT)


def dry_run(file: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable, "-c", "from cli.app import main; main()",
            "import", file, "--organization", "acme", "--dry-run", "--json", *arguments,
        ],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1}, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.fixture(scope="module")
def tiny_peak(tmp_path_factory: pytest.TempPathFactory) -> int:
    file = tmp_path_factory.mktemp("tiny") / "x.csv"
    file.write_text("title\nx\n")
    return int(dry_run(file)["peak_memory_bytes"])


@pytest.mark.parametrize(
    ("write", "arguments"),
    [
        (csv_file, ()),
        (json_lines, ("--format", "jsonl")),
        (github_on_one_line, ("--format", "github")),
        (quote_never_closed, ()),
        (one_endless_line, ()),
    ],
)
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, tiny_peak: int, write: Callable[[TextIO, int], None], arguments: tuple[str, ...]
) -> None:
    file = tmp_path / "x.csv"
    with file.open("w") as opened:
        write(opened, SIZE)
    summary = dry_run(file, *arguments)
    assert summary["complete"]
    assert summary["peak_memory_bytes"] - tiny_peak < ROOM

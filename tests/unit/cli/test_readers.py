"""Files as people have them: every readable row with its line number, every other one refused with a reason."""

import csv
import io
import json
import random
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cli import github, lines
from cli.errors import UsageError
from cli.github import GitHubReader
from cli.readers import CsvReader, Format, JsonLinesReader, detect_format, open_rows
from cli.rows import BadRow, Row

TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.text('a,";\r\n\t ', max_size=8)


def opened(text: str | bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(text if isinstance(text, bytes) else text.encode()))


def csv_rows(text: str | bytes) -> list[Row | BadRow]:
    return list(CsvReader(opened(text)))


def jsonl_rows(text: str | bytes) -> list[Row | BadRow]:
    return list(JsonLinesReader(opened(text)))


def github_rows(text: str | bytes) -> list[Row | BadRow]:
    return list(GitHubReader(opened(text)))


def bad(rows: list[Row | BadRow]) -> list[tuple[int, int, str]]:
    return [(row.line, row.last_line, row.reason) for row in rows if isinstance(row, BadRow)]


@given(
    rows=st.integers(2, 4).flatmap(lambda width: st.lists(st.lists(TEXT, min_size=width, max_size=width), min_size=1)),
    end=st.sampled_from(["\r\n", "\n", "\r"]),
    quoting=st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC)),
    mark=st.booleans(),
)
@example(rows=[["a\r", "\n"], ["", ""]], end="\r\n", quoting=csv.QUOTE_MINIMAL, mark=True)
def test_what_pythons_csv_writes_is_read_back_with_its_line_numbers(
    rows: list[list[str]],
    end: str,
    quoting: Literal[0, 1, 2],
    *,
    mark: bool,
) -> None:
    if end == "\r":  # a file of old spreadsheets is one without any \n
        rows = [[value.replace("\n", "") for value in row] for row in rows]
    if end == "\n" and quoting == csv.QUOTE_MINIMAL:  # before Python 3.13, csv writes \r bare and cannot read it back
        rows = [[value.replace("\r", "") for value in row] for row in rows]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=end, quoting=quoting)
    columns = [f"c{position}" for position in range(len(rows[0]))]
    writer.writerow(columns)
    expected = []
    for row in rows:
        expected.append(Row(buffer.getvalue().count(end[-1]) + 1, dict(zip(columns, row, strict=True))))
        writer.writerow(row)
    content = buffer.getvalue().encode("utf-8-sig" if mark else "utf-8")
    assert csv_rows(content) == expected


def test_a_bare_carriage_return_refuses_its_row_and_begins_no_other() -> None:
    assert bad(csv_rows("a,b\nx\ry,2\n1,2\n")) == [(2, 2, "a carriage return outside of quotes")]


@given(st.lists(st.dictionaries(TEXT, TEXT, max_size=4)), st.sampled_from(["\n", "\r\n"]))
def test_json_lines_are_read_back_with_their_line_numbers(rows: list[dict[str, str]], end: str) -> None:
    text = end.join(json.dumps(row) for row in rows)
    assert jsonl_rows(text) == [Row(number, row) for number, row in enumerate(rows, 1)]


@given(
    titles=st.lists(st.text(st.characters(codec="utf-8"))), indent=st.sampled_from([None, 2]), ascii_only=st.booleans()
)
def test_issues_are_read_back_with_their_line_numbers(
    titles: list[str],
    indent: int | None,
    *,
    ascii_only: bool,
) -> None:
    text = json.dumps([{"title": title, "n": [{"x": 1}]} for title in titles], indent=indent, ensure_ascii=ascii_only)
    rows = github_rows(text)
    assert [row.values["title"] for row in rows if isinstance(row, Row)] == titles
    if indent:
        begins = [number for number, line in enumerate(text.split("\n"), 1) if line == "  {"]
        assert [row.line for row in rows] == begins


@given(st.binary(max_size=300))
def test_no_bytes_whatever_end_the_reading_with_an_unexpected_error(content: bytes) -> None:
    for read in (csv_rows, jsonl_rows, github_rows):
        try:
            rows = read(content)
        except UsageError:
            continue
        assert [row.line for row in rows] == sorted(row.line for row in rows)


def test_ragged_rows_are_refused_and_the_others_read() -> None:
    rows = csv_rows("a,b\n1,2\n3\n4,5,6\n\n7,8\n")
    assert [row.line for row in rows if isinstance(row, Row)] == [2, 6]
    assert bad(rows) == [
        (3, 3, "1 values, but the header names 2 columns"),
        (4, 4, "3 values, but the header names 2 columns"),
    ]


def test_a_quote_that_is_never_closed_is_told_with_the_lines_it_swallows() -> None:
    rows = csv_rows('a,b\n1,2\n3,"oops\n5,6\n7,8\n')
    assert isinstance(rows[0], Row)
    assert bad(rows) == [(3, 5, "a quote is opened and never closed (lines 3 to 5)")]


def test_a_stray_quote_does_not_join_rows_silently() -> None:
    rows = csv_rows('a,b\n"x" y,2\n3,"oops\n5",6 "\n7,8\n')
    assert [(first, last) for first, last, _ in bad(rows)] == [(2, 2), (3, 4)]
    assert "after a closing quote" in bad(rows)[0][2]
    rows = csv_rows('a,b\n3,"oops\n5,"six"\n7,8\n')
    assert [(first, last) for first, last, _ in bad(rows)] == [(2, 3)]
    assert rows[-1] == Row(4, {"a": "7", "b": "8"})


def test_a_quote_that_swallows_too_much_is_given_up_and_the_rest_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "RECORD_CHARACTERS", 100)
    rows = csv_rows('a,b\n1,"' + "x\n" * 200 + "1,2\n")
    assert rows[-1] == Row(202, {"a": "1", "b": "2"})
    first, last, reason = bad(rows)[0]
    assert first == 2
    assert last < 60
    assert "is a quote not closed?" in reason


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_endless_line_is_skipped_and_the_line_numbers_stay_right(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(lines, "RECORD_CHARACTERS", 50)
    for length in range(40, 210):
        text = "a,b\n" + "x" * length + end + "1,2\n"
        assert csv_rows(text)[-1] == Row(3, {"a": "1", "b": "2"}), length
    old = csv_rows("a,b\r" + "x" * 190 + "\r1,2\r")
    assert old[-1] == Row(3, {"a": "1", "b": "2"})


@pytest.mark.parametrize("read", [csv_rows, jsonl_rows])
def test_bytes_that_are_not_utf8_refuse_their_row_alone(read: object) -> None:
    if read is csv_rows:
        rows = csv_rows(b'a,b\n1,ok\n2,"x\n\xff"\n3,\xc3\xbc\n')
        expected = [(3, 4, "line 4 holds bytes that are not UTF-8")]
    else:
        rows = jsonl_rows(b'{"a":"ok"}\n{"a":"\xff"}\n{"a":"\xc3\xbc"}\n')
        expected = [(2, 2, "the line holds bytes that are not UTF-8")]
    assert bad(rows) == expected
    assert isinstance(rows[-1], Row)
    assert "ü" in rows[-1].values.values()


def test_every_column_gets_a_name_of_its_own() -> None:
    assert CsvReader(opened(b"a, b ,,a,a\n")).columns == ["a", "b", "column 3", "a (2)", "a (3)"]


def test_broken_json_lines_are_refused_alone() -> None:
    rows = jsonl_rows('{"a": 1}\nnonsense\n[1]\n\n{"a": "\\ud800"}\n{"a": tru}\n{"b": 2}')
    assert [(row.line, isinstance(row, Row)) for row in rows] == [
        (1, True), (2, False), (3, False), (5, False), (6, False), (7, True),
    ]  # fmt: skip
    assert bad(rows)[1][2] == "not a JSON object"


def test_json_values_keep_the_text_they_are_written_with() -> None:
    (row,) = jsonl_rows('{"n": 12345678901234567890.10, "t": true, "z": null, "l": ["ä", 1], "s": "a\\nb", "e": ""}')
    assert isinstance(row, Row)
    assert row.values == {
        "n": "12345678901234567890.10", "t": "true", "z": "", "l": '["ä", 1]', "s": "a\nb", "e": "",
    }  # fmt: skip


REST_ISSUE = {
    "url": "https://api.github.com/repos/octo/hello/issues/7",
    "repository_url": "https://api.github.com/repos/octo/hello",
    "html_url": "https://github.com/octo/hello/issues/7",
    "number": 7,
    "title": "It breaks",
    "body": None,
    "state": "open",
    "user": {"login": "mona"},
    "labels": [{"name": "bug"}, {"name": "p1"}],
    "assignees": [{"login": "hubot"}],
    "milestone": {"title": "1.0"},
    "comments": 3,
    "created_at": "2024-01-01T00:00:00Z",
    "pull_request": {},
}
GH_ISSUE = {
    "url": "https://github.com/octo/hello/issues/8",
    "number": 8,
    "title": "gh",
    "body": "text",
    "state": "CLOSED",
    "author": {"login": "mona"},
    "labels": [],
    "comments": [{"body": "x"}],
    "createdAt": "2024-01-01T00:00:00Z",
}


def test_issues_of_the_rest_api_and_of_gh_give_the_same_columns() -> None:
    rest, gh = github_rows(json.dumps([REST_ISSUE, GH_ISSUE]))
    assert isinstance(rest, Row)
    assert isinstance(gh, Row)
    assert list(rest.values) == list(gh.values) == github.COLUMNS
    assert rest.values["external_id"] == "github:octo/hello#7"
    assert gh.values["external_id"] == "github:octo/hello#8"
    assert rest.values["type"] == "pull request"
    assert (rest.values["labels"], rest.values["milestone"], rest.values["comments"]) == ("bug, p1", "1.0", "3")
    assert (gh.values["state"], gh.values["comments"], gh.values["author"]) == ("closed", "1", "mona")
    assert gh.values["created_at"] == "2024-01-01T00:00:00Z"


def test_an_issue_without_a_repository_is_known_by_its_address() -> None:
    (row,) = github_rows('[{"title": "x", "html_url": "https://example.org/7"}]')
    assert isinstance(row, Row)
    assert row.values["external_id"] == "https://example.org/7"


def test_what_is_no_issue_is_refused_alone() -> None:
    rows = github_rows('[\n1,\n{"title": "a"},\n[2, {"title": "in"}],\n{"other": 1},\n{"title": "b"}\n]')
    assert [(row.line, isinstance(row, Row)) for row in rows] == [
        (2, False), (3, True), (4, False), (5, False), (6, True),
    ]  # fmt: skip


def test_a_cut_off_export_gives_the_issues_before_the_cut() -> None:
    rows = github_rows('[\n{"title": "a"},\n{"title": "b"},\n{"tit')
    assert [row.line for row in rows if isinstance(row, Row)] == [2, 3]
    assert bad(rows)[0][0] == 4
    assert "reading ends here" in bad(rows)[0][2]


def test_an_issue_just_before_broken_json_is_read() -> None:
    rows = github_rows('[{"title": "a"}, oops')
    assert [isinstance(row, Row) for row in rows] == [True, False]


def test_an_issue_that_is_too_long_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(github, "ISSUE_BYTES", 500)
    monkeypatch.setattr(github, "CHUNK_BYTES", 64)
    labels = [{"name": str(number)} for number in range(100)]
    rows = github_rows(json.dumps([{"title": "a", "labels": labels}, {"title": "b"}], indent=1))
    assert [isinstance(row, Row) for row in rows] == [False, True]
    assert "longer than 500 bytes" in bad(rows)[0][2]


def test_an_endless_value_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(github, "ISSUE_BYTES", 500)
    monkeypatch.setattr(github, "CHUNK_BYTES", 64)
    rows = github_rows('[{"title": "a"},\n{"title": "' + "x" * 5000)
    assert [isinstance(row, Row) for row in rows] == [True, False]
    assert bad(rows)[0][2] == "a value longer than 500 bytes; reading ends here"


@pytest.mark.parametrize("text", ["{}", '{"title": "x"}\n{"title": "y"}', "7", '"x"'])
def test_json_that_is_no_array_is_told_apart(text: str) -> None:
    with pytest.raises(UsageError, match="not an array of GitHub issues"):
        github_rows(text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        ("a,b\n".encode("utf-16"), "UTF-16"),
        (b'"a,b\n', "header"),
        (b"\n\n", "no header"),
        (b"\xff,b\n1,2", "header"),
    ],
)
def test_files_that_cannot_be_used_are_told_in_a_sentence(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=reason), open_rows(file, Format.CSV):
        pass


def test_a_folder_and_a_missing_file_are_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"), open_rows(tmp_path, Format.CSV):
        pass
    with pytest.raises(UsageError, match="There is no file"), open_rows(tmp_path / "none", Format.CSV):
        pass


def test_the_format_is_told_from_the_name() -> None:
    names = {"a.CSV": Format.CSV, "a.jsonl": Format.JSONL, "a.ndjson": Format.JSONL, "a.json": Format.GITHUB}
    assert {name: detect_format(Path(name)) for name in names} == names
    with pytest.raises(UsageError, match="--format"):
        detect_format(Path("a.txt"))


def test_the_position_grows_to_the_size_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("a,b\n" + "\n".join(f"{random.random()},2" for _ in range(5000)))
    with open_rows(file, Format.CSV) as source:
        positions = [source.position() for _ in source.reader]
        assert positions == sorted(positions)
        assert positions[2500] < positions[-1] == source.size

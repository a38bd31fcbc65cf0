"""A GitHub issues export: the array of `GET /repos/{owner}/{repo}/issues` or of `gh issue list --json …`."""

import io
import re
from collections.abc import Iterator
from typing import Any

import ijson

from cli.errors import UsageError
from cli.rows import BadRow, Row, cell

CHUNK_BYTES = 65_536
ISSUE_BYTES = 4_194_304  # GitHub's own limit for a body is 65,536 characters
COLUMNS = [
    "title", "body", "external_id", "repository", "number", "type", "state", "state_reason", "author",
    "labels", "assignees", "milestone", "comments", "created_at", "closed_at", "url",
]  # fmt: skip

_ISSUE_URL = re.compile(r"([^/]+/[^/]+)/(?:issues|pulls?)/(\d+)/?$")
_REPOSITORY_URL = re.compile(r"/repos/([^/]+/[^/]+)/?$")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class GitHubReader:
    """The items of a JSON array with the lines they begin on.

    Broken JSON ends the reading, since what follows has no reliable beginning; the issues before it are read.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        self.columns: list[str] | None = COLUMNS
        self._file = file

    def __iter__(self) -> Iterator[Row | BadRow]:
        """Read the issues.

        Raises:
            UsageError: when the file is not an array.
        """
        items = _Items()
        events = ijson.sendable_list()
        parser = ijson.basic_parse_coro(events)
        line = 1
        try:
            chunk = self._file.readline(CHUNK_BYTES).removeprefix(_BYTE_ORDER_MARK)
            while chunk:
                parser.send(chunk)
                yield from items.take(events, line, len(chunk))
                events.clear()
                if items.stuck:
                    yield BadRow(line, f"a value longer than {ISSUE_BYTES:,} bytes; reading ends here", line)
                    return
                line += chunk.endswith(b"\n")
                chunk = self._file.readline(CHUNK_BYTES)
            parser.close()
            yield from items.take(events, line, 0)
        except ijson.JSONError as error:
            yield from items.take(events, line, 0)
            detail = str(error).strip().splitlines()[0]
            yield BadRow(line, f"not valid JSON: {detail}; reading ends here", line)


class _Items:
    """Builds the elements of the outermost array from parser events."""

    def __init__(self) -> None:
        self._depth = 0
        self._builder: ijson.ObjectBuilder | None = None
        self._first = 1
        self._bytes = 0
        self._silent_bytes = 0

    @property
    def stuck(self) -> bool:
        """Whether the parser is gathering one endless value."""
        return self._silent_bytes > ISSUE_BYTES

    def take(self, events: list[tuple[str, Any]], line: int, size: int) -> Iterator[Row | BadRow]:
        """Rows that are complete after a chunk of `size` bytes of `line` gave `events`."""
        self._bytes += size
        self._silent_bytes = 0 if events else self._silent_bytes + size
        for event, value in events:
            row = self._event(event, value, line)
            if row is not None:
                yield row

    def _event(self, event: str, value: Any, line: int) -> Row | BadRow | None:
        ends = event in {"end_map", "end_array"}
        self._depth -= ends
        if self._depth == 0:
            if event not in {"start_array", "end_array"}:
                raise UsageError("The file is not an array of GitHub issues. (One object a line is --format jsonl.)")
            self._depth += not ends
            return None
        if self._depth == 1 and not ends:
            self._first, self._bytes, self._builder = line, 0, ijson.ObjectBuilder()
        self._depth += event in {"start_map", "start_array"}
        if self._builder is None:
            return None  # the rest of an issue that is too long
        self._builder.event(event, value)
        row: Row | BadRow | None = None
        if self._bytes > ISSUE_BYTES:
            row = BadRow(self._first, f"the issue is longer than {ISSUE_BYTES:,} bytes", line)
        elif self._depth == 1:
            row = _row(self._first, line, self._builder.value)
        if row is not None:
            self._builder = None
        return row


def _row(first: int, last: int, issue: Any) -> Row | BadRow:
    if not isinstance(issue, dict) or "title" not in issue:
        return BadRow(first, "not a GitHub issue", last)
    url = cell(issue.get("html_url") or issue.get("url"))
    repository, number = _origin(issue, url)
    values = {
        "title": issue.get("title"),
        "body": issue.get("body"),
        "external_id": f"github:{repository}#{number}" if repository and number else url,
        "repository": repository,
        "number": number,
        "type": "pull request" if "pull_request" in issue else "issue",
        "state": cell(issue.get("state")).lower(),
        "state_reason": cell(issue.get("state_reason") or issue.get("stateReason")).lower(),
        "author": _name(issue.get("user") or issue.get("author")),
        "labels": _names(issue.get("labels")),
        "assignees": _names(issue.get("assignees")),
        "milestone": _name(issue.get("milestone")),
        "comments": _count(issue.get("comments")),
        "created_at": issue.get("created_at") or issue.get("createdAt"),
        "closed_at": issue.get("closed_at") or issue.get("closedAt"),
        "url": url,
    }
    return Row(first, {name: cell(value) for name, value in values.items()})


def _origin(issue: dict[str, Any], url: str) -> tuple[str, str]:
    """`owner/name` of the repository and the issue's number."""
    from_url = _ISSUE_URL.search(url)
    from_repository = _REPOSITORY_URL.search(cell(issue.get("repository_url")))
    number = cell(issue.get("number")) or (from_url.group(2) if from_url else "")
    if from_repository:
        return from_repository.group(1), number
    return (from_url.group(1) if from_url else ""), number


def _name(value: Any) -> str:
    if isinstance(value, dict):
        return cell(value.get("login") or value.get("name") or value.get("title"))
    return cell(value)


def _names(values: Any) -> str:
    return ", ".join(filter(None, map(_name, values))) if isinstance(values, list) else _name(values)


def _count(comments: Any) -> str:
    """The REST API gives a number, `gh` the list of comments itself."""
    return str(len(comments)) if isinstance(comments, list) else cell(comments)

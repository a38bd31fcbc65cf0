"""`relaydesk import` against the stand-in: what is sent, what is told, how it goes on."""

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from cli import client
from cli.errors import Exit
from libs.common.models import BODY_BYTES
from tests.unit.cli.conftest import Run, started
from tests.unit.cli.stand_in import KEY, StandIn

ABSENT = "(there is no such file)"
ROWS = "title,state,text\nfirst,AZ,one\nsecond,,two\nfirst,AZ,one\n"


def written(name: str, content: str, encoding: str = "utf-8") -> Path:
    file = Path(name)
    file.write_text(content, encoding, newline="")
    return file


def reported(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def numbered(count: int) -> Path:
    return written("many.csv", "title,text\n" + "".join(f"t{number},x\n" for number in range(count)))


async def test_rows_become_tickets_with_fields_and_description(import_file: Run, platform: StandIn) -> None:
    result = await import_file(written("a.csv", ROWS), "--map", "title=text", "--json")
    assert result.code == Exit.OK
    summary = json.loads(result.out)
    assert (summary["rows"], summary["created"], summary["exists"], summary["refused"]) == (3, 3, 0, 0)
    assert summary["complete"]
    assert summary["peak_memory_bytes"] > 1_000_000
    ticket, empty_state, _ = platform.tickets.values()
    assert (empty_state.description, empty_state.fields) == ("title: second", {"title": "second"})
    assert (ticket.title, ticket.description, ticket.fields) == (
        "one", "title: first\nstate: AZ", {"title": "first", "state": "AZ"},
    )  # fmt: skip


async def test_rows_that_are_not_open_are_counted_as_their_tickets_are(import_file: Run, platform: StandIn) -> None:
    file = written("a.csv", "title,Status,text\na,solved,x\nb,open,x\nc, Closed,x\nd,,x\n")
    result = await import_file(file)
    assert "2 rows are not open where they come from (Status). Statuses are not imported" in " ".join(
        result.err.split()
    )
    assert json.loads((await import_file(file, "--json")).out)["reopened"] == 2
    assert "not open" not in (await import_file(written("b.csv", ROWS))).err
    issues = written("i.json", json.dumps([{"title": "x", "number": 1, "state": "closed"}]))
    assert json.loads((await import_file(issues, "--format", "github", "--json")).out)["reopened"] == 1


async def test_a_second_run_creates_nothing_though_rows_are_alike(import_file: Run, platform: StandIn) -> None:
    file = written("a.csv", ROWS)
    await import_file(file)
    assert len(platform.tickets) == 3
    again = json.loads((await import_file(file, "--json")).out)
    assert (again["created"], again["exists"]) == (0, 3)
    moved = written("b.csv", "text,title,state\nnew,new,new\ntwo,second,\none,first,AZ\none,first,AZ\n")
    third = json.loads((await import_file(moved, "--json")).out)
    assert (third["created"], third["exists"]) == (1, 3)


async def test_an_external_id_of_the_file_is_used_and_its_absence_made_up_for(
    import_file: Run, platform: StandIn
) -> None:
    await import_file(written("a.csv", "title,id\na,K-1\nb,\n"), "--map", "external_id=id")
    known, made = platform.tickets
    assert known == "K-1"
    assert made.startswith("row:")
    assert made.endswith(":1")


async def test_issues_keep_their_text_and_are_known_by_their_number(import_file: Run, platform: StandIn) -> None:
    issue = {"title": "x", "body": "text", "html_url": "https://github.com/o/r/issues/5", "state": "open"}
    await import_file(written("issues.json", json.dumps([issue])))
    ticket = platform.tickets["github:o/r#5"]
    assert (ticket.title, ticket.description) == ("x", "text")
    assert ticket.fields["state"] == "open"


async def test_a_value_of_an_issue_that_fields_cannot_hold_goes_to_the_description(
    import_file: Run, platform: StandIn
) -> None:
    labels = [{"name": f"label {number}"} for number in range(200)]
    await import_file(written("issues.json", json.dumps([{"title": "x", "body": "text", "labels": labels}])))
    (ticket,) = platform.tickets.values()
    assert "labels" not in ticket.fields
    assert ticket.description.startswith("text\n\nlabels: label 0, label 1, ")


async def test_refused_rows_are_shown_and_reported_with_line_and_reason(import_file: Run, platform: StandIn) -> None:
    platform.refused_titles = {"no"}
    content = f"title,priority\nok,HIGH\n,low\n{'x' * 301},\nok,soon\nno,\nok\na\0b,\n\xff,\n"
    result = await import_file(written("a.csv", content, "latin-1"), "--report", "report.jsonl")
    assert result.code == Exit.REFUSED
    assert {row["line"]: row["reason"] for row in reported("report.jsonl")} == {
        3: "no title (column title is empty or missing)",
        4: "title has 301 characters, at most 300 are possible",
        5: "priority 'soon' is not one of low, normal, high, urgent",
        6: "not this one",
        7: "1 values, but the header names 2 columns",
        8: "title: Must not be blank or contain the character U+0000",
        9: "line 9 holds bytes that are not UTF-8",
    }
    assert "line 4: title has 301" in result.err
    assert "\0" not in result.err


async def test_the_terminal_shows_twenty_refused_rows_and_the_report_all(import_file: Run) -> None:
    file = written("a.csv", "title,b\n" + ",x\n" * 50)
    result = await import_file(file, "--report", "report.jsonl")
    assert result.err.count("no title") == 20
    assert "all of them stand in report.jsonl" in result.err
    assert len(reported("report.jsonl")) == 50


async def test_values_that_fields_cannot_hold_stay_in_the_description(import_file: Run, platform: StandIn) -> None:
    columns = [f"c{number}" for number in range(60)]
    values = ["y" * 1001, *("v" for _ in columns[1:])]
    await import_file(written("a.csv", f"title,{','.join(columns)}\nx,{','.join(values)}\n"))
    (ticket,) = platform.tickets.values()
    assert list(ticket.fields) == columns[1:51]
    assert ticket.description.count("\n") == 59


async def test_requests_stay_below_the_limits_of_rows_and_bytes(import_file: Run, platform: StandIn) -> None:
    text = "ü\\" * 15_000  # 60,000 bytes as JSON
    file = written("a.csv", "title,description\n" + f"small,{text}\n" * 40)
    await import_file(file, "--batch", "500")
    assert sum(platform.requests) == 40
    assert max(platform.bodies) <= BODY_BYTES
    assert max(platform.bodies) > BODY_BYTES * 0.9
    platform.requests.clear()
    await import_file(numbered(1001), "--batch", "250")
    assert sorted(platform.requests) == [1, 250, 250, 250, 250]


async def test_no_more_requests_than_asked_for_are_under_way(import_file: Run, platform: StandIn) -> None:
    platform.hold = asyncio.Event()
    job = asyncio.create_task(import_file(numbered(1000), "--batch", "10", "--parallel", "3"))
    for _ in range(3):
        await platform.held.get()
    await asyncio.sleep(0.1)
    platform.hold.set()
    assert (await job).code == Exit.OK
    assert platform.most_at_once == 3


async def test_a_dry_run_asks_no_platform(run: Run) -> None:
    file = written("a.csv", ROWS + "bad\n")
    result = await run("import", file, "--organization", "acme", "--dry-run", "--url", "http://127.0.0.1:1", "--json")
    assert result.code == Exit.REFUSED
    summary = json.loads(result.out)
    assert (summary["valid"], summary["refused"], summary["created"]) == (3, 1, 0)


async def test_an_outage_is_waited_for_and_nothing_is_doubled(import_file: Run, platform: StandIn) -> None:
    platform.faults = [503, 504, "drop", 503]
    result = await import_file(numbered(500), "--batch", "50", "--json")
    assert result.code == Exit.OK
    assert json.loads(result.out)["created"] == 500
    assert "Trying again for up to 300 s" in result.err
    assert result.err.count("answers again") == result.err.count("Trying again")


async def test_an_answer_that_does_not_come_is_asked_for_again(
    import_file: Run, platform: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.5)
    platform.hold = asyncio.Event()
    job = asyncio.create_task(import_file(numbered(10), "--json"))
    for _ in range(2):
        await platform.held.get()
    platform.hold.set()
    result = await job
    assert result.code == Exit.OK
    assert "did not answer within 0.5 s" in result.err
    assert len(platform.tickets) == 10


async def test_a_platform_that_is_not_there_yet_is_waited_for(run: Run) -> None:
    arguments = ("--organization", "acme", "--url", "http://127.0.0.1:9", "--api-key", KEY, "--retry-for", "1.5")
    result = await run("import", written("a.csv", ROWS), *arguments)
    assert result.code == Exit.UNREACHABLE
    assert result.err.count("cannot be reached") == 2
    assert "Trying again for up to 2 s" in result.err


async def test_giving_up_tells_how_far_it_came_and_the_next_run_ends_it(import_file: Run, platform: StandIn) -> None:
    file = numbered(500)
    platform.faults = [503] * 1000
    result = await import_file(file, "--retry-for", "0.2", "--json")
    assert result.code == Exit.UNREACHABLE
    assert "Run the same command again" in result.err
    assert not json.loads(result.out)["complete"]
    platform.faults = []
    again = json.loads((await import_file(file, "--json")).out)
    assert again["created"] + again["exists"] == len(platform.tickets) == 500  # an abandoned request may have arrived


async def test_a_key_that_ends_in_between_ends_the_import(import_file: Run, platform: StandIn) -> None:
    platform.faults = [401]
    result = await import_file(numbered(10))
    assert result.code == Exit.NOT_AUTHORISED
    assert "authentication_required" in result.err
    assert "Run the same command again" in result.err


async def test_ctrl_c_tells_how_far_it_came_and_the_next_run_ends_it(import_file: Run, platform: StandIn) -> None:
    platform.hold, platform.hold_after = asyncio.Event(), 3
    file = numbered(1000)
    process = await started(
        platform, "import", file, "--organization", "acme", "--batch", 100, "--parallel", 1, "--json"
    )
    try:
        await asyncio.wait_for(platform.held.get(), 120)
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == Exit.INTERRUPTED
    assert b"Everything up to line 301 was answered for (300 created" in err
    assert b"Traceback" not in err
    assert json.loads(out)["created"] == 300
    platform.hold.set()
    again = json.loads((await import_file(file, "--json")).out)
    assert again["created"] + 300 == 1000 or again["created"] + 400 == 1000


@pytest.mark.parametrize(
    ("name", "content", "arguments", "sentence"),
    [
        ("none.csv", ABSENT, (), "There is no file none.csv"),
        ("folder", ABSENT, ("--format", "csv"), "is a folder"),
        ("e.csv", "", (), "e.csv is empty"),
        ("a.txt", "title\nx\n", (), "give --format"),
        ("a.csv", "a,b\n1,2\n", (), "No column is called title; choose one by --map title=COLUMN. The file has: a, b."),
        ("a.csv", "a,b\n1,2\n", ("--map", "title=c"), "there is no such column. The file has: a, b."),
        ("a.jsonl", '{"a":1}\n{"b":2}\n', ("--map", "title=c"), "there is no such column. The file has: a, b."),
        ("a.csv", "a,b\n1,2\n", ("--map", "titel=a"), "--map titel=a is not understood"),
        ("a.csv", "a,b\n1,2\n", ("--map", "title"), "--map title is not understood"),
        ("a.csv", "a,b\n1,2\n", ("--map", "title=a", "--map", "title=b"), "is given twice"),
        ("a.csv", "title\n1\n", ("--report", "no/such/folder"), "cannot be written"),
        ("a.csv", "title\n1\n", ("--report", "a.csv"), "is the file to be imported"),
        ("a.json", '{"title": "x"}', (), "not an array of GitHub issues"),
        ("a.csv", "title\n1\n", ("--batch", "501"), "less than or equal to 500"),
        ("a.csv", "title\n1\n", ("--url", "localhost:8080"), "--url must look like"),
    ],
)
async def test_what_cannot_be_used_is_a_sentence_and_exit_2(
    *, import_file: Run, platform: StandIn, tmp_path: Path, name: str, content: str, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "folder").mkdir()
    if content != ABSENT:
        written(name, content)
    result = await import_file(name, *arguments)
    assert result.code == Exit.USAGE
    assert sentence in result.err
    assert not platform.tickets
    if name == "a.csv":
        assert (tmp_path / name).read_text() == content


async def test_sparse_columns_of_json_lines_are_no_wrong_mapping(import_file: Run, platform: StandIn) -> None:
    file = written("a.jsonl", '{"t":"a"}\n{"t":"b","d":"text"}\n')
    assert (await import_file(file, "--map", "title=t", "--map", "description=d")).code == Exit.OK
    assert [ticket.description for ticket in platform.tickets.values()] == ["", "text"]


async def test_a_key_of_another_organization_writes_nothing(run: Run, platform: StandIn) -> None:
    file = written("a.csv", ROWS)
    result = await run("import", file, "--organization", "other", "--url", platform.url, "--api-key", KEY)
    assert result.code == Exit.NOT_AUTHORISED
    assert "belongs to the organization 'acme', not to 'other'" in result.err
    assert not platform.tickets


async def test_a_header_without_rows_is_no_error(import_file: Run) -> None:
    assert (await import_file(written("a.csv", "title\n"))).code == Exit.OK


def test_retry_after_is_a_number_or_a_date() -> None:
    assert client.retry_after("7") == 7
    assert client.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert client.retry_after("soon") is None
    assert client.retry_after(None) is None

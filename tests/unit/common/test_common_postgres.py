"""What `db_query_duration_ms` calls each of our statements."""

import uuid

import pytest

from libs.common import query_metrics
from libs.common.postgres import transaction_on
from libs.common.query_metrics import statement_labels
from services.search import store as store_search
from services.tickets import (
    store_audit,
    store_bulk,
    store_comments,
    store_history,
    store_idempotency,
    store_people,
    store_relay,
    store_reports,
    store_servers,
    store_tickets,
)

EXPECTED = {
    store_tickets: {
        "NEXT_NUMBER": ("update", "organizations"),
        "INSERT_TICKET": ("insert", "tickets"),
        "SELECT_TICKET": ("select", "tickets"),
        "LOCK_TICKET": ("select", "tickets"),
        "UPDATE_TICKET": ("update", "tickets"),
        "NEW_ID_AND_TIME": ("select", "none"),
    },
    store_bulk: {
        "LOCK_NUMBERS": ("select", "organizations"),
        "KNOWN_EXTERNAL_IDS": ("select", "tickets"),
        "NEW_IDS": ("select", "none"),
        "INSERT_TICKETS": ("update", "organizations"),
        "LOCK_TICKETS": ("select", "tickets"),
        "KNOWN_USERS": ("select", "users"),
        "NEW_EVENT_IDS": ("select", "none"),
        "UPDATE_TICKETS": ("update", "tickets"),
    },
    store_history: {
        "LIST_HISTORY": ("select", "tickets"),
        "LIST_NEWEST_HISTORY": ("select", "tickets"),
    },
    store_audit: {
        "INSERT_AUDIT": ("insert", "audit_log"),
        "LIST_AUDIT": ("select", "audit_log"),
        "LIST_AUDIT_OF_ACTION": ("select", "audit_log"),
    },
    store_idempotency: {
        "CLAIM_KEY": ("select", "none"),
        "INSERT_RECORD": ("insert", "idempotency_records"),
    },
    store_comments: {
        "INSERT_COMMENT": ("update", "tickets"),
        "SELECT_COMMENTS": ("select", "comments"),
        "LIST_COMMENTS": ("select", "comments"),
        "LIST_NEWEST_COMMENTS": ("select", "comments"),
        "TICKET_EXISTS": ("select", "tickets"),
    },
    store_reports: {
        "COUNT_BY_STATUS": ("select", "tickets"),
        "COUNT_BY_ASSIGNEE": ("select", "tickets"),
        "COUNT_BY_DAY": ("select", "tickets"),
        "TIMES": ("select", "tickets"),
        "BACKLOG_AGES": ("select", "tickets"),
    },
    store_people: {
        "SELECT_CREDENTIAL": ("select", "organizations"),
        "SELECT_KEY_OWNER": ("select", "api_keys"),
        "INSERT_KEY": ("insert", "api_keys"),
        "SELECT_KEYS": ("select", "api_keys"),
        "REVOKE_KEY": ("update", "api_keys"),
        "INSERT_ORGANIZATION": ("insert", "organizations"),
        "INSERT_USER": ("insert", "users"),
        "INSERT_CREDENTIAL": ("insert", "credentials"),
    },
    store_relay: {
        "HEARTBEAT": ("insert", "relay_instances"),
        "FORGET_INSTANCES": ("delete", "relay_instances"),
        "COUNT_INSTANCES": ("select", "relay_instances"),
        "RENEW_LEASES": ("update", "relay_shards"),
        "CLAIM_LEASES": ("update", "relay_shards"),
        "RELEASE_LEASES": ("update", "relay_shards"),
        "SELECT_ROWS": ("select", "outbox"),
        "DELETE_ROWS": ("delete", "outbox"),
        "BACKLOG": ("select", "outbox"),
    },
    store_servers: {
        "SERVER_POSITION": ("select", "database_timelines"),
        "PRIMARY_TIMELINE": ("select", "none"),
        "READ_POSITION": ("select", "none"),
        "RECORD_TIMELINE": ("insert", "database_timelines"),
        "COMMIT_LOCALLY": ("set", "none"),
    },
}
CASES = [(module, name, labels) for module, names in EXPECTED.items() for name, labels in names.items()]


def _begins_with_a_verb(text: str) -> bool:
    return " " in text and text.split(None, 1)[0].isupper()


def statements(module: object) -> dict[str, str]:
    return {
        name: value
        for name, value in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str) and _begins_with_a_verb(value)
    }


@pytest.mark.parametrize(("module", "name", "labels"), CASES, ids=[name for _module, name, _labels in CASES])
def test_a_statement_is_labelled_with_what_it_does_and_where(
    module: object, name: str, labels: tuple[str, str]
) -> None:
    assert statement_labels(statements(module)[name]) == labels


@pytest.mark.parametrize("module", EXPECTED)
def test_every_statement_of_the_stores_is_in_the_table(module: object) -> None:
    assert statements(module).keys() == EXPECTED[module].keys()  # type: ignore[index]


@pytest.mark.parametrize(("name", "sql"), statements(store_search).items())
def test_the_search_services_statements_name_a_table_of_theirs(name: str, sql: str) -> None:
    verb, table = statement_labels(sql)
    assert verb in {"select", "insert", "update", "delete"}, name
    assert f" {table}" in sql.lower() or table == "none", name


@pytest.mark.parametrize(
    ("sql", "labels"),
    [
        ("BEGIN", ("begin", "none")),
        ("BEGIN READ ONLY; SELECT set_config('a', 'b', true)", ("begin", "none")),
        ("COMMIT", ("commit", "none")),
        ("", ("none", "none")),
        ("SELECT 1", ("select", "none")),
        ("select a from b for update skip locked", ("select", "b")),
        ("INSERT INTO a VALUES (1) ON CONFLICT DO UPDATE SET x = 1", ("insert", "a")),
        ("WITH old AS (SELECT x FROM b) INSERT INTO a SELECT x FROM old", ("insert", "a")),
        ("WITH old AS (SELECT x FROM b) UPDATE a AS t SET x = 1", ("update", "a")),
        ("SELECT extract(epoch FROM now()) FROM a", ("select", "a")),
    ],
)
def test_the_first_write_wins_over_reads(sql: str, labels: tuple[str, str]) -> None:
    assert statement_labels(sql) == labels


@pytest.mark.parametrize("read_only", [False, True])
def test_the_transactions_of_many_organizations_take_no_other_statements_place(
    monkeypatch: pytest.MonkeyPatch, *, read_only: bool
) -> None:
    """Reading a statement's labels costs as much as the rest of its measurement."""
    known: dict[str, object] = {}
    monkeypatch.setattr(query_metrics, "_children", known)
    for _ in range(query_metrics._KNOWN_STATEMENTS + 1):
        begin = transaction_on(None, organization_id=uuid.uuid4(), read_only=read_only)._begin
        child = query_metrics._child(begin)
        assert child._labelvalues == ("begin", "none")
    assert len(known) == 1
    child = query_metrics._child("SELECT 1")
    assert known["SELECT 1"] is child is query_metrics._child("SELECT 1")


def test_statements_without_end_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, object] = {}
    monkeypatch.setattr(query_metrics, "_children", known)
    for number in range(query_metrics._KNOWN_STATEMENTS * 2):
        assert query_metrics._child(f"SELECT {number}")._labelvalues == ("select", "none")
    assert len(known) == query_metrics._KNOWN_STATEMENTS == 1000

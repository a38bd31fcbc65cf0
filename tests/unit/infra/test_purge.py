"""Purging nginx's cache by surrogate key."""

from pathlib import Path

import pytest

from infra.cdn.purge import purge, surrogate_keys

HEAD = b"\x05\x00binary\nKEY: /api/docs\nHTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"


@pytest.mark.parametrize(
    ("cached", "keys"),
    [
        (HEAD + b"Surrogate-Key: docs openapi\r\n\r\nbody", {b"docs", b"openapi"}),
        (HEAD + b"surrogate-key:docs\r\nSurrogate-Key: other\r\n\r\n", {b"docs", b"other"}),
        (HEAD + b"\r\nSurrogate-Key: body\r\n", set()),
        (HEAD + b"X-Surrogate-Key: no\r\n\r\n", set()),
        (b"Surrogate-Key: no\r\n\r\n", set()),
        (b"", set()),
    ],
)
def test_the_keys_are_those_of_the_head(cached: bytes, keys: set[bytes]) -> None:
    assert surrogate_keys(cached) == keys


def test_what_has_a_key_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    for name, keys in (("a/one", b"docs"), ("b/two", b"docs openapi"), ("b/three", b"docs-old"), ("four", b"")):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(HEAD + b"Surrogate-Key: " + keys + b"\r\n\r\ndocs")
    assert purge(tmp_path, ["openapi", "nothing"]) == 1
    assert purge(tmp_path, ["docs"]) == 1
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["four", "three"]

"""Passwords and keys: made once, private, and never half there."""

import json
import stat
from dataclasses import asdict
from pathlib import Path

import pytest

from infra.local.credentials import Credentials
from infra.local.errors import LauncherError
from infra.local.storage import read_json, write_private


def test_credentials_are_generated_once_and_only_their_owner_can_read_them(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    first = Credentials.load_or_generate(path)
    assert Credentials.load_or_generate(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path], "a file was left behind"


def test_no_two_stacks_and_no_two_servers_share_a_secret() -> None:
    secrets = [
        secret
        for each in (Credentials.generate(), Credentials.generate())
        for secret in (
            each.postgres_superuser,
            each.postgres_replication,
            each.postgres_owner,
            each.redis,
            each.cache_redis,
            *(key["d"] for key in each.signing_keys.values()),
        )
    ]
    assert len(set(secrets)) == len(secrets) == 18


def test_of_two_launchers_that_start_together_the_first_ones_credentials_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "credentials.json"
    first, second = Credentials.generate(), Credentials.generate()

    def generate() -> Credentials:
        write_private(path, json.dumps(asdict(first)))  # the other launcher was faster
        return second

    monkeypatch.setattr(Credentials, "generate", generate)
    assert Credentials.load_or_generate(path) == first


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"redis": "x"}'])
def test_a_damaged_file_is_a_sentence_and_is_not_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(text)
    with pytest.raises(LauncherError, match="is damaged"):
        Credentials.load_or_generate(path)
    assert path.read_text() == text


def test_a_private_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"old": 1}')
    path.chmod(0o644)
    write_private(path, '{"new": 1}')
    assert read_json(path) == {"new": 1}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

"""Passwords and keys: made once, private, and never half there."""

import stat
import threading
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


def test_no_two_stacks_share_a_secret() -> None:
    one, other = Credentials.generate(), Credentials.generate()
    assert one.postgres_owner != other.postgres_owner
    assert one.redis != one.cache_redis
    assert one.signing_keys["gateway"]["d"] != other.signing_keys["gateway"]["d"]


def test_launchers_that_start_together_end_up_with_the_same_credentials(tmp_path: Path) -> None:
    found: list[Credentials] = []

    def load() -> None:
        found.append(Credentials.load_or_generate(tmp_path / "c.json"))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(each == found[0] for each in found)


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

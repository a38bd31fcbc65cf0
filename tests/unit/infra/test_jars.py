"""Kafka's lock file, and what is done about a jar that is missing or damaged."""

import hashlib
import threading
import tomllib
from pathlib import Path

import pytest
import requests
from jgo.maven import MavenContext

from infra.local.errors import LauncherError
from infra.local.kafka import jars
from infra.local.kafka.jars import Jar


def test_the_committed_lock_holds_kafka_first_and_a_logger_with_checksums() -> None:
    locked = jars.read_lock()
    assert locked[0].artifact == "kafka_2.13"
    assert {"kafka-clients", "log4j-core", "log4j-slf4j-impl"} <= {jar.artifact for jar in locked}
    assert all(len(jar.sha256) == 64 for jar in locked)
    assert len({jar.path for jar in locked}) == len(locked)


def test_the_lock_was_made_from_the_committed_coordinates() -> None:
    lock = tomllib.loads(jars.LOCK_FILE.read_text())
    specification = jars.LOCK_FILE.with_name("jgo.toml").read_bytes()
    assert lock["metadata"]["spec_hash"] == hashlib.sha256(specification).hexdigest()[:16]


def test_kafkas_own_jars_have_one_version() -> None:
    assert len({jar.version for jar in jars.read_lock() if jar.group == "org.apache.kafka"}) == 1


def test_a_jar_lies_where_maven_puts_it() -> None:
    path = Jar("org.apache.kafka", "kafka_2.13", "4.3.1", "").path
    assert path == Path("org/apache/kafka/kafka_2.13/4.3.1/kafka_2.13-4.3.1.jar")


@pytest.mark.parametrize("text", ["", "dependencies = 3", '[[dependencies]]\ngroupId = "g"', "x ="])
def test_a_lock_without_checksums_is_refused(tmp_path: Path, text: str) -> None:
    lock = tmp_path / "jgo.lock.toml"
    lock.write_text(text)
    with pytest.raises(LauncherError, match="not a complete jgo lock file"):
        jars.read_lock(lock)


CONTENT = b"a jar"
GOOD = Jar("g", "a", "1", hashlib.sha256(CONTENT).hexdigest())


class Downloads:
    """Stands where jgo asks the network: hands out what it was given, in turn."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self._answers = list(answers)
        self.count = 0

    def resolve(self, context: MavenContext, jar: Jar) -> None:
        self.count += 1
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        path = Path(context.repo_cache) / jar.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(answer)


def serve(monkeypatch: pytest.MonkeyPatch, downloads: Downloads) -> None:
    def resolve(artifact: object) -> None:
        downloads.resolve(artifact.context, GOOD)  # type: ignore[attr-defined]

    monkeypatch.setattr("jgo.maven._core.Artifact.resolve", resolve)


def fetch(folder: Path) -> tuple[list[Path], list[tuple[int, int]]]:
    progress: list[tuple[int, int]] = []
    paths = jars.fetch([GOOD], folder, lambda done, total: progress.append((done, total)), threading.Event())
    return paths, progress


def test_a_missing_jar_is_downloaded_with_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, Downloads(CONTENT))
    paths, progress = fetch(tmp_path)
    assert paths == [tmp_path / GOOD.path]
    assert paths[0].read_bytes() == CONTENT
    assert progress == [(0, 1), (1, 1)]


def test_a_jar_that_is_there_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = Downloads(CONTENT)
    serve(monkeypatch, downloads)
    fetch(tmp_path)
    assert fetch(tmp_path)[1] == []
    assert downloads.count == 1


def test_a_damaged_jar_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / GOOD.path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a j")
    serve(monkeypatch, Downloads(CONTENT))
    fetch(tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_broken_connection_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, Downloads(requests.ConnectionError("reset"), b"half", CONTENT))
    assert fetch(tmp_path)[0][0].read_bytes() == CONTENT


def test_without_a_network_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, Downloads(*[requests.ConnectionError("unreachable")] * jars.ATTEMPTS))
    with pytest.raises(LauncherError, match=r"Could not download a-1\.jar of Apache Kafka: .*network"):
        fetch(tmp_path)


def test_a_jar_with_another_checksum_never_reaches_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, Downloads(*[b"evil"] * jars.ATTEMPTS))
    with pytest.raises(LauncherError, match="checksum"):
        fetch(tmp_path)
    assert not (tmp_path / GOOD.path).exists()


def test_nothing_is_downloaded_after_a_cancellation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = Downloads(CONTENT)
    serve(monkeypatch, downloads)
    cancelled = threading.Event()
    cancelled.set()
    jars.fetch([GOOD], tmp_path, lambda _done, _total: None, cancelled)
    assert downloads.count == 0


def test_a_home_that_cannot_be_written_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("M2_REPO", str(tmp_path / "file" / "repository"))
    assert jars.repository(tmp_path / "own") == tmp_path / "own"
    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    assert jars.repository(tmp_path / "own") == tmp_path / "m2"

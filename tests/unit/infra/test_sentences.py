"""Errors are sentences; logs stay small; records mean one process only."""

import errno
import os
import shutil
from pathlib import Path

import psutil
import pytest

from infra.local import account, process, runfile
from infra.local.errors import LauncherError, first_cause, from_os_error
from infra.local.process import reason


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("initdb: error: could not write: No space left on device\ngoodbye", 1, "the disk is full."),
        ("Caused by: java.net.BindException: Address already in use", 1, "its port is already in use."),
        ("LOG: a\nFATAL: data directory has wrong ownership\nHINT: b", 1, "exit code 1: FATAL: data directory"),
        ("just this", 3, "exit code 3: just this"),
        ("Server started", -9, "signal SIGKILL."),
        ("", 2, "exit code 2."),
    ],
)
def test_the_reason_of_an_end_is_taken_from_what_was_written(output: str, code: int, said: str) -> None:
    assert reason(output, code).startswith(said)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "The disk is full: could not write (/x)"),
        (errno.EACCES, "Not allowed to write (/x)"),
        (errno.EROFS, "Not allowed to write (/x)"),
        (errno.EIO, "Could not write (/x): Input/output error"),
    ],
)
def test_an_error_of_the_system_becomes_a_sentence(number: int, said: str) -> None:
    assert from_os_error(OSError(number, os.strerror(number), "/x"), "write").sentence.startswith(said)


def test_a_launcher_error_is_found_inside_groups() -> None:
    wanted = LauncherError("this one")
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [wanted])])
    assert first_cause(group) is wanted


def test_an_error_names_its_log() -> None:
    assert str(LauncherError("It broke.", Path("/x/kafka.log"))) == "It broke. Log: /x/kafka.log"


def test_a_log_is_cut_when_it_is_too_long_and_its_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_LIMIT_BYTES", 100)
    log = tmp_path / "kafka.log"
    log.write_text("x" * 60)
    process.rotate(log)
    assert log.stat().st_size == 60
    log.write_text("x" * 200 + "the end")
    process.rotate(log)
    assert log.stat().st_size == 0
    kept = (tmp_path / "kafka.old.log").read_text()
    assert len(kept) == 50
    assert kept.endswith("the end")


def test_a_record_means_one_process_and_not_a_later_one_with_its_number() -> None:
    mine = runfile.identify(os.getpid())
    assert runfile.find(mine) == psutil.Process()
    assert runfile.find(mine | {"created": mine["created"] - 100}) is None
    assert runfile.find(runfile.identify(None)) is None


def test_a_run_file_that_is_missing_or_damaged_means_that_nothing_runs(tmp_path: Path) -> None:
    assert runfile.launcher_pid(tmp_path) is None
    (tmp_path / "run.json").write_text("{")
    assert runfile.launcher_pid(tmp_path) is None
    assert runfile.read_run(tmp_path)["parts"] == {}


def test_root_without_useradd_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "is_root", lambda: True)
    monkeypatch.setattr(account, "ACCOUNT", "no-such-account")
    monkeypatch.setattr(shutil, "which", lambda *_name, **_path: None)
    with pytest.raises(LauncherError, match="install the package `passwd`"):
        account.server_account()


def test_a_folder_is_locked_for_one(tmp_path: Path) -> None:
    first, second = runfile.FolderLock(tmp_path), runfile.FolderLock(tmp_path)
    first.take()
    with pytest.raises(LauncherError, match="A stack already runs in"):
        second.take()
    first.release()
    second.take()
    second.release()

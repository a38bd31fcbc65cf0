"""bootstrap.sh and the Makefile: what they say where something is missing."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
TOOLS = ("sh", "dirname", "mkdir", "cksum", "cat", "df", "awk", "id", "cut")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in a folder with a space, with nothing but what bootstrap.sh reads."""
    folder = tmp_path / "a checkout"
    (folder / "infra" / "local").mkdir(parents=True)
    shutil.copy(CHECKOUT / "infra/local/bootstrap.sh", folder / "infra/local")
    shutil.copy(CHECKOUT / "Makefile", folder)
    (folder / "uv.lock").write_text("lock")
    (folder / "pyproject.toml").write_text("project")
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with the tools that every Debian has, and neither uv nor Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def bootstrap(checkout: Path, tools: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(checkout / "infra/local/bootstrap.sh")],
        env={"PATH": str(tools)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_python_and_uv_one_sentence_says_what_to_install(checkout: Path, tools: Path) -> None:
    result = bootstrap(checkout, tools)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "needs Python 3.11, 3.12 or 3.13 with venv, or uv" in result.stderr


@pytest.mark.parametrize(
    "shim",
    ["echo 'pyenv: python3: command not found' >&2; exit 127", "echo \"No module named 'ensurepip'\" >&2; exit 1"],
    ids=["pyenv shim of a version that is not installed", "Debian's python3 without python3-venv"],
)
def test_a_python_that_does_not_work_counts_as_none(checkout: Path, tools: Path, shim: str) -> None:
    for name in ("python3.13", "python3.11", "python3"):
        program(tools / name, shim)
    result = bootstrap(checkout, tools)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "needs Python" in result.stderr


def test_uv_on_path_is_used_and_an_unchanged_lock_is_not_installed_twice(checkout: Path, tools: Path) -> None:
    calls = checkout / "calls"
    program(
        tools / "uv",
        f'echo "$@" >>"{calls}"; [ "$1" = sync ] && mkdir -p .venv/bin && cp "{tools}/true" .venv/bin/python; :',
    )
    program(tools / "true", "exit 0")
    (tools / "cp").symlink_to(shutil.which("cp") or "/bin/cp")
    for _ in range(2):
        result = bootstrap(checkout, tools)
        assert result.returncode == 0, result.stderr
    assert calls.read_text().count("sync --frozen") == 1
    (checkout / "uv.lock").write_text("another lock")
    assert bootstrap(checkout, tools).returncode == 0
    assert calls.read_text().count("sync --frozen") == 2


def test_a_failed_installation_is_said_and_tried_again(checkout: Path, tools: Path) -> None:
    program(tools / "uv", '[ "$1" = --version ]')
    for _ in range(2):
        result = bootstrap(checkout, tools)
        assert result.returncode == 1
        assert "Could not install the Python packages" in result.stderr


def test_a_full_disk_is_said_before_anything_is_downloaded(checkout: Path, tools: Path) -> None:
    (tools / "df").unlink()
    program(tools / "df", "echo Filesystem; echo /dev/x 100 90 10 90% /")
    program(tools / "uv", "exit 0")
    result = bootstrap(checkout, tools)
    assert result.returncode == 1
    assert "is full: 10 MB are free" in result.stderr


def test_make_help_lists_every_target_of_a_user(checkout: Path) -> None:
    shown = subprocess.run(["make"], cwd=checkout, capture_output=True, text=True, check=True).stdout
    for target in ("run", "stop", "status", "logs", "clean", "help"):
        assert f"make {target} " in shown


@pytest.mark.parametrize("target", ["status", "stop", "logs", "clean"])
def test_before_the_first_run_nothing_is_installed_only_to_say_that_nothing_runs(checkout: Path, target: str) -> None:
    result = subprocess.run(["make", target], cwd=checkout, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "Nothing has been started in this folder yet" in result.stderr
    assert not (checkout / ".local").exists()

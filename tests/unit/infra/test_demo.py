"""What `make run` leaves for the command line, and what it shows a newcomer."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from infra.local.demo import Demo, ensure_demo
from infra.local.display import Display
from infra.local.stack import Stack

MADE = {"database": "embedded", "users": [], "organization": {"slug": "demo"}, "api_key": {"key": "rdk_x"}}


def stack(root: Path, url: str) -> Stack:
    told: Any = SimpleNamespace(root=root, is_external=lambda _name: False, service_url=lambda _name: url)
    return cast("Stack", told)


@pytest.mark.parametrize("before", [MADE, {"url": "http://127.0.0.1:1", **MADE}])
async def test_the_address_of_this_start_is_left_beside_the_key(tmp_path: Path, before: dict[str, Any]) -> None:
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(before))
    demo = await ensure_demo(stack(tmp_path, "http://127.0.0.1:9080"))
    assert demo.api_key == "rdk_x"
    assert json.loads(file.read_text()) == {**MADE, "url": "http://127.0.0.1:9080"}
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_newcomer_is_shown_where_the_api_is_described() -> None:
    shown = io.StringIO()
    Display(Console(file=shown, width=200)).ready("http://127.0.0.1:9080", Demo("demo", [], ""), 1.0, "logs")
    assert "http://127.0.0.1:9080/api/docs" in shown.getvalue()

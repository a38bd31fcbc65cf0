import pytest

from libs.common import lending


@pytest.fixture
def endless_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is at hand stays there."""
    monkeypatch.setattr(lending, "ROUND_SECONDS", 3600.0)

import uuid

import pytest

from libs.common import settings
from libs.common.problems import Problem
from services.search.queries import Queries
from services.search.routes import _limit
from services.search.settings import DatabaseSettings


@pytest.mark.parametrize("text", ["", "  \t", "x" * 501, "a\x00b"])
async def test_a_text_that_cannot_be_searched_is_refused_before_the_database(text: str) -> None:
    with pytest.raises(Problem) as raised:
        await Queries(None).search(uuid.uuid4(), text, 20)
    assert raised.value.code == "invalid_parameter"


@pytest.mark.parametrize("text", ["0", "51", "-1", "", "x", "1.5", "00501", "\u0665", "9" * 5000])
def test_a_limit_outside_1_to_50_is_refused(text: str) -> None:
    with pytest.raises(Problem) as raised:
        _limit(text)
    assert raised.value.code == "invalid_parameter"


def test_limits_within_are_taken() -> None:
    assert [_limit(None), _limit("1"), _limit("50")] == [20, 1, 50]


def test_migrating_needs_the_database_alone() -> None:
    loaded = settings.load(
        DatabaseSettings, {"SEARCH_DATABASE_URL": "postgresql://a", "SEARCH_PORT": "1"}, prefix="SEARCH_"
    )
    assert loaded.owner_url == "postgresql://a"

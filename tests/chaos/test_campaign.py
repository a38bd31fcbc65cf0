"""A short campaign: everything is killed and paused at each named point of the write path, and nothing goes wrong.

`make soak` runs the long one.
"""

from pathlib import Path

import pytest

from tests.chaos.campaign.campaign import Orders, run
from tests.chaos.campaign.points import POINTS, Actor, Blow
from tests.chaos.campaign.report import render

# Its first ten faults kill and pause each actor, reach every point, and take the broker away for longer than is waited.
SEED = 50868


@pytest.mark.timeout(600)
async def test_whatever_is_killed_or_paused_nothing_acknowledged_is_lost_doubled_or_out_of_order(
    tmp_path: Path,
) -> None:
    result = await run(Orders(SEED, events=2_000, faults=10), tmp_path)
    print(render(result))
    assert result.violations == []
    assert {point for point, _actor, _blow in result.hits} == set(POINTS)
    assert {(actor, blow) for _point, actor, blow in result.hits} == {(actor, blow) for actor in Actor for blow in Blow}
    assert result.events >= 2_000
    assert all(creation.answers for creation in result.records.creations)

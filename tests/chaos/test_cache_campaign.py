"""Short campaigns against the cache: nobody is answered with anything older than was promised, and a bug is found.

`make soak` runs the long ones.
"""

from pathlib import Path

import pytest

from tests.chaos.cache_campaign.campaign import Orders, run
from tests.chaos.cache_campaign.checker import Kind
from tests.chaos.cache_campaign.faults import Fault
from tests.chaos.cache_campaign.records import What
from tests.chaos.cache_campaign.report import render

# All but the longest, which the soak has: Kafka gives up a killed consumer after ten seconds.
FAULTS = tuple(fault for fault in Fault if fault is not Fault.EVENTS_KILL)
SEED = 1


@pytest.mark.timeout(600)
async def test_whatever_happens_to_the_cache_nobody_reads_what_is_too_old(tmp_path: Path) -> None:
    result = await run(Orders(SEED, faults=len(FAULTS), among=FAULTS), tmp_path)
    print(render(result))
    assert result.violations == []
    assert {window.name for window in result.history.windows} == set(FAULTS)
    assert {read.what for read in result.history.reads} == set(What)
    assert {"l1", "l2", "miss"} <= result.staleness.keys()
    assert {name.split('"')[1] for name in result.metrics if name.startswith("campaign_holds_total{")} == {
        "before_load",
        "after_load",
        "before_bump",
    }
    assert any(write.through is None for write in result.history.writes)
    assert result.replicas


@pytest.mark.timeout(300)
async def test_a_tag_check_that_is_off_is_found(tmp_path: Path) -> None:
    orders = Orders(SEED, faults=0, seconds=6, plant="tag-check-off", holds=0.3)
    result = await run(orders, tmp_path)
    assert {violation.kind for violation in result.violations} >= {Kind.OWN_WRITE}

"""`python -m tests.chaos.cache_campaign`: is anybody ever answered with something older than was promised?

Exits with 1 when there is a violation; with `--plant NAME`, when there is none. `make soak` runs the long one.
"""

import asyncio
import logging
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from tests.chaos.cache_campaign.campaign import Orders, run
from tests.chaos.cache_campaign.faults import Fault
from tests.chaos.cache_campaign.plants import PLANTS
from tests.chaos.cache_campaign.report import render


def main(  # noqa: PLR0917 (options, each by its name)
    faults: Annotated[int, typer.Option(help="Cause so many faults.")] = 2 * len(Fault),
    seconds: Annotated[float, typer.Option(help="Go on for so many seconds at least.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The faults follow from it.")] = 1,
    plant: Annotated[str, typer.Option(help=f"Plant a bug, which must be found: {', '.join(PLANTS)}.")] = "",
    holds: Annotated[float, typer.Option(help="The share of upstream calls that a gateway holds up.")] = 0.05,
    only: Annotated[list[str] | None, typer.Option(help="Only faults of these kinds, such as REDIS_KILL.")] = None,
    log: Annotated[Path | None, typer.Option(help="Write the result here as well.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Keep the processes' logs here.")] = None,
) -> None:
    """Run one campaign on servers of its own and print what came of it."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        print(line, flush=True)

    among = tuple(Fault[name] for name in only or Fault.__members__)
    with tempfile.TemporaryDirectory(prefix="relaydesk-campaign-") as temporary:
        orders = Orders(seed, faults, seconds, among, plant, holds=holds)
        result = uvloop.run(run(orders, folder or Path(temporary), tell))
    text = render(result)
    print(f"\n{text}")
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text + "\nFaults as they fell\n" + "".join(f"{line}\n" for line in told), encoding="utf-8")
    if bool(result.violations) != bool(plant):
        raise typer.Exit(1)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    typer.run(main)

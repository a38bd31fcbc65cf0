"""`python -m tests.chaos.campaign`: kill and pause everything at its worst moments, then check that nothing is wrong.

Exits with 1 when there is a violation. `make soak` runs the long one.
"""

import asyncio
import logging
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from tests.chaos.campaign.campaign import Orders, run
from tests.chaos.campaign.report import render


def main(  # noqa: PLR0917 (options, each by its name)
    events: Annotated[int, typer.Option(help="Write at least so many events.")] = 10_000,
    kills: Annotated[int, typer.Option(help="Kill or pause so many times.")] = 40,
    seed: Annotated[int, typer.Option(help="The faults follow from it.")] = 1,
    outage: Annotated[float, typer.Option(help="Then take Kafka away for so many seconds.")] = 0.0,
    calm: Annotated[float, typer.Option(help="Then write for so many seconds without a fault.")] = 0.0,
    log: Annotated[Path | None, typer.Option(help="Write the result here as well.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Keep the processes' logs here.")] = None,
) -> None:
    """Run one campaign on servers of its own and print what came of it."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a broker that is killed is no news here
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="relaydesk-campaign-") as temporary:
        orders = Orders(seed, events, kills, outage=outage, calm=calm)
        result = uvloop.run(run(orders, folder or Path(temporary), tell))
    text = render(result)
    print(f"\n{text}")
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text + "\nFaults as they fell\n" + "".join(f"{line}\n" for line in told), encoding="utf-8")
    if result.violations:
        raise typer.Exit(1)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    typer.run(main)

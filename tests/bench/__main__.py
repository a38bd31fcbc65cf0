"""`make bench`: every figure a ratio in one run, on the real stack, printed as one table.

Ours and its baseline run in turn, several times; minimum, median and maximum of the ratio are printed. Absolute
times belong to the machine and the moment. docs/performance.md explains what limits each.
"""

import asyncio
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from infra.local.stack import Stack
from tests.bench import (
    bulk,
    cache_workload,
    commit_to_kafka,
    commit_to_socket,
    create,
    gateway,
    lists,
    mixed,
    read_capacity,
    read_one,
    relay_drain,
)
from tests.bench.figures import Figure
from tests.support.clients import provision

BENCHMARKS = {
    "create": create.measure,
    "gateway": gateway.measure,
    "mixed": mixed.measure,
    "cache-workload": cache_workload.measure,
    "read-one": read_one.measure,
    "read-capacity": read_capacity.measure,
    "commit-to-socket": commit_to_socket.measure,
    "commit-to-kafka": commit_to_kafka.measure,
    "relay-drain": relay_drain.measure,
    "lists": lists.measure,
    "bulk": bulk.measure,  # last: what it leaves for the relay and the index would weigh on the others
}


def main(
    only: Annotated[
        list[str] | None, typer.Argument(help=f"Which of: {', '.join(BENCHMARKS)}; all by default.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="How often ours and its baseline run in turn.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of each run.")] = 5.0,
) -> None:
    """Measure and print one table."""
    console = Console(stderr=True)
    unknown = [name for name in only or () if name not in BENCHMARKS]
    if unknown:
        console.print(f"There is no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}.")
        sys.exit(2)
    if shutil.which("wrk") is None:
        console.print("The benchmarks need wrk, the HTTP load generator: apt-get install wrk")
        sys.exit(2)
    figures = uvloop.run(run(console, only or list(BENCHMARKS), repeats, seconds))
    Console(width=150).print(render(figures))


async def run(console: Console, names: Sequence[str], repeats: int, seconds: float) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="relaydesk-bench-") as folder:
        stack = Stack(Path(folder) / "stack", replicas=1)
        try:
            console.print("starting the stack …")
            async with stack:
                tenants = [await provision(stack, agents=0) for _ in range(create.ORGANIZATIONS)]
                figures: list[Figure] = []
                for name in names:
                    for repeat in range(repeats):
                        console.print(f"{name}: {repeat + 1} of {repeats}")
                        figures += await BENCHMARKS[name](stack, tenants, seconds)
                return figures
        finally:
            stack.remove()


def render(figures: Sequence[Figure]) -> Table:
    table = Table(title="Relaydesk benchmarks (ratios within one run; min / median / max)")
    for heading in ("what", "ours", "baseline", "ratio", "unit"):
        table.add_column(heading, overflow="fold")
    by_what: dict[str, list[Figure]] = {}
    for figure in figures:
        by_what.setdefault(figure.what, []).append(figure)
    for what, found in by_what.items():
        table.add_row(
            what,
            _spread([figure.ours for figure in found]),
            f"{_spread([figure.baseline for figure in found])} ({found[0].baseline_name})",
            _spread([figure.ours / figure.baseline for figure in found], digits=2),
            found[0].unit,
        )
    return table


def _spread(values: Sequence[float], digits: int = 1) -> str:
    return " / ".join(f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    typer.run(main)

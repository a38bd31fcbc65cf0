"""The log of a campaign: what was done, what was hit, what was watched, what was found."""

import collections
import platform
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.chaos.campaign.campaign import Result
from tests.chaos.campaign.points import Actor, Blow, combinations
from tests.chaos.campaign.watching import Watch, quarters

SHOWN = 20
MEGABYTE = 1e6


def render(result: Result) -> str:
    return "\n".join([*_summary(result), "", *_hits(result), "", *_watched(result), "", *_violations(result), ""])


def _summary(result: Result) -> Iterator[str]:
    records, orders = result.records, result.orders
    outcomes = collections.Counter(update.outcome for update in records.updates)
    yield "Campaign against the write path"
    yield f"commit      {commit()}"
    yield f"seed        {orders.seed}"
    yield f"machine     {platform.machine()}, Python {platform.python_version()}"
    yield f"duration    {result.seconds / 60:.1f} min with start, drain and check"
    yield f"faults      {result.hits.total()} hit, {result.missed} times a point was not reached and armed again"
    yield f"events      {result.events} committed, {result.messages} messages in the topic (replays are legal)"
    yield f"creations   {len(records.creations)} requests with an Idempotency-Key, repeated until answered"
    yield f"updates     {outcomes['applied']} applied, {outcomes['refused']} refused, {outcomes['unknown']} in doubt"
    yield f"repeats     {records.repeats} requests without an answer or with 503, sent again"
    yield f"drained     {result.drain_seconds:.1f} s after the last write"
    if orders.outage:
        yield f"outage      Kafka away for {orders.outage:.0f} s; {result.outage_rows} events waited, then drained"
    yield f"violations  {len(result.violations)}"


def _hits(result: Result) -> Iterator[str]:
    columns = [(actor, blow) for actor in Actor for blow in Blow]
    yield "Hits by point (rows) and by who was killed or paused there (columns)"
    yield f"{'':18}" + "".join(f"{actor}:".rjust(11) + f"{blow}".ljust(6) for actor, blow in columns) + "  all"
    for point, possible in combinations().items():
        cells = [str(result.hits[point, *column]) if column in possible else "-" for column in columns]
        total = sum(result.hits[point, *column] for column in possible)
        yield f"{point:18}" + "".join(f"{cell:>11}{'':6}" for cell in cells) + f"{total:5}"


def _watched(result: Result) -> Iterator[str]:
    yield "Memory of the processes that live through the campaign (RSS in MB, median of each quarter)"
    for name, samples in result.watch.memory.items():
        if len(samples) >= 4:
            medians = "".join(f"{median / MEGABYTE:9.1f}" for median in quarters(samples))
            yield f"{name:18}{medians}   ({len(samples)} samples)"
    yield ""
    yield "Hot tables over the campaign (a killed server forgets its count of dead rows; sizes include indexes)"
    yield from _tables(result.watch)
    if result.calm is not None:
        yield ""
        yield f"The same over {result.orders.calm:.0f} s under load without a fault"
        yield from _tables(result.calm)


def _tables(watch: Watch) -> Iterator[str]:
    yield f"{'':18}{'dead: max':>12}{'last':>9}{'MB: first':>12}{'max':>9}{'last':>9}{'vacuums':>9}"
    for name, samples in watch.tables.items():
        if samples:
            sizes = [sample.bytes / MEGABYTE for sample in samples]
            dead = [sample.dead for sample in samples]
            yield (
                f"{name:18}{max(dead):12}{dead[-1]:9}{sizes[0]:12.2f}{max(sizes):9.2f}{sizes[-1]:9.2f}"
                f"{samples[-1].vacuums:9}"
            )
    if watch.outbox:
        yield f"rows in the outbox: {max(watch.outbox)} at most, {watch.outbox[-1]} at last"


def _violations(result: Result) -> Sequence[str]:
    if not result.violations:
        return ["No violation: every acknowledged write is in Kafka, nothing else is, in order, once."]
    kinds = collections.Counter(violation.kind for violation in result.violations)
    return [
        "VIOLATIONS",
        *(f"{count:6} {kind.name}: {kind}" for kind, count in kinds.items()),
        *(f"  {violation.kind.name}: {violation.detail}" for violation in result.violations[:SHOWN]),
    ]


def commit() -> str:
    """The commit that is checked out, and whether something was changed since."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", ":/libs", ":/services")
        return git("rev-parse", "HEAD").strip() + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

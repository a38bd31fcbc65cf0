"""The log of a campaign against the cache."""

import collections
import platform
from collections.abc import Iterator, Sequence

from tests.chaos.cache_campaign.campaign import Result
from tests.chaos.campaign.report import commit

SHOWN = 20


def render(result: Result) -> str:
    return "\n".join([*_summary(result), "", *_faults(result), "", *_staleness(result), "", *_violations(result), ""])


def _summary(result: Result) -> Iterator[str]:
    history, orders = result.history, result.orders
    reads = history.reads
    direct = sum(write.through is None for write in history.writes)
    kinds = collections.Counter(str(read.what) for read in reads)
    yield "Campaign against the cache"
    yield f"commit      {commit()}"
    yield f"seed        {orders.seed}" + (f", planted bug: {orders.plant}" if orders.plant else "")
    yield f"machine     {platform.machine()}, Python {platform.python_version()}"
    yield f"duration    {result.seconds / 60:.1f} min with start and check"
    yield f"writes      {len(history.writes)} acknowledged, {direct} of them past the gateways"
    yield f"            {history.unanswered_writes} unanswered"
    yield f"reads       {len(reads)}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    yield f"            {sum(r.need is not None for r in reads)} with a token"
    yield f"            {sum(r.revalidated for r in reads)} answered 304"
    yield f"            {sum(r.seen is None for r in reads)} failed"
    holds = {name: count for name, count in result.metrics.items() if name.startswith("campaign_holds_total{")}
    yield "held up     " + ", ".join(f"{int(count)} {name.split(chr(34))[1]}" for name, count in sorted(holds.items()))
    yield f"replicas    {len(result.replicas)} times one applied late while the other stood still"
    yield f"events      known to the cache after {_spread(result.lags)} s ({len(result.lags)} probes)"
    yield f"violations  {len(result.violations)}"


def _faults(result: Result) -> Iterator[str]:
    yield "Faults: how often, how long with what they left behind, reads meanwhile by where they were answered"
    by_name = collections.defaultdict(list)
    for window in result.history.windows:
        by_name[window.name].append(window)
    outcomes = sorted({read.outcome for read in result.history.reads})
    yield (
        f"{'':52}{'times':>6}{'seconds':>9}"
        + "".join(f"{outcome:>8}" for outcome in outcomes)
        + "  the last was shown by"
    )
    for name, windows in sorted(by_name.items()):
        counts = collections.Counter(
            read.outcome
            for read in result.history.reads
            if any(window.start <= read.started <= window.end for window in windows)
        )
        seconds = sum(window.end - window.start for window in windows)
        cells = "".join(f"{counts[outcome]:8}" for outcome in outcomes)
        yield f"{name:52}{len(windows):6}{seconds:9.1f}{cells}  {windows[-1].shown}"


def _staleness(result: Result) -> Iterator[str]:
    yield "Staleness: for how many seconds what a read did not show had been acknowledged when it began"
    yield f"{'':8}{'reads':>9}{'stale':>8}{'P50':>9}{'P95':>9}{'P99':>9}{'max':>9}"
    every: list[float] = []
    for outcome, values in sorted(result.staleness.items()):
        yield _row(outcome, values)
        every += values
    yield _row("all", every)
    stale = [value for value in every if value > 0]
    yield _row("stale", stale)
    held = result.held_back
    yield f"older than 2 s: {len(held)} reads" + (
        f", {max(held):.1f} s at most, while a fault held back the event that was to tell of the write" if held else ""
    )


def _row(name: str, values: Sequence[float]) -> str:
    ordered = sorted(values)
    cells = "".join(f"{_percentile(ordered, share):9.3f}" for share in (0.5, 0.95, 0.99, 1.0))
    return f"{name:8}{len(ordered):9}{sum(value > 0 for value in ordered):8}{cells}"


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return " / ".join(f"{_percentile(ordered, share):.3f}" for share in (0.5, 0.95, 0.99, 1.0)) + " (P50/P95/P99/max)"


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _violations(result: Result) -> Sequence[str]:
    if not result.violations:
        return ["No violation: no read was older than promised, and none failed because of the cache."]
    kinds = collections.Counter(violation.kind for violation in result.violations)
    return [
        "VIOLATIONS",
        *(f"{count:6} {kind.name}: {kind}" for kind, count in kinds.items()),
        *(f"  {violation.kind.name}: {violation.detail}" for violation in result.violations[:SHOWN]),
    ]

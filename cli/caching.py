"""`relaydesk cache`: what the gateway's cache holds, and clearing it by hand."""

import sys

import msgspec
import typer

from cli import output
from cli.client import connect
from cli.credentials import Target
from cli.errors import CommandError, StoppedError, UsageError
from libs.common.cache.administration import ClearCache, Clearing


def parse(tag: str | None, prefix: str | None) -> ClearCache:
    """What is to be cleared.

    Raises:
        UsageError: for both at once, or a tag or prefix that there cannot be.
    """
    if tag is not None and prefix is not None:
        raise UsageError("Give --tag or --prefix, not both.")
    named = {name: value for name, value in (("tag", tag), ("prefix", prefix)) if value is not None}
    try:
        return msgspec.convert(named, ClearCache)
    except msgspec.ValidationError as error:
        if tag is not None:
            raise UsageError(f"--tag must be tickets, search or ticket:ID, not {tag!r}.") from error
        raise UsageError(
            f"--prefix must be a path that begins with /api/, as `stats` shows it, not {prefix!r}."
        ) from error


async def stats(target: Target, *, as_json: bool) -> None:
    """Print the figures of whichever gateway process answers."""
    async with connect(target.url, target.api_key) as api:
        figures, raw = await api.cache()
    if as_json:
        output.line(raw.decode())
    else:
        output.cache_figures(figures)


async def confirm(target: Target, wanted: ClearCache) -> None:
    """Ask whether it is meant so.

    Raises:
        CommandError: when it is not; UsageError when there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise UsageError("Nothing was cleared: there is nobody to ask; give --yes.")
    async with connect(target.url, target.api_key) as api:
        session = await api.session()
    what = "everything that is cached"
    if wanted.tag:
        what = f"what is cached with the tag {wanted.tag}"
    elif wanted.prefix:
        what = f"what is cached of {wanted.prefix}…"
    question = output.plain(f"Clear {what} for {session.organization.name} at {target.url}?")
    try:
        meant = typer.confirm(question, err=True)
    except typer.Abort:
        raise StoppedError("Nothing was cleared.") from None
    if not meant:
        raise CommandError("Nothing was cleared.")


async def clear(target: Target, wanted: ClearCache, *, as_json: bool) -> None:
    """Clear it and tell what was done."""
    async with connect(target.url, target.api_key) as api:
        done, raw = await api.clear_cache(wanted)
    if as_json:
        output.line(raw.decode())
    elif done.cleared is Clearing.ORGANIZATION:
        output.notice("Cleared everything of the organization.")
    elif done.cleared is Clearing.TAG:
        output.notice(f"Cleared the tag {output.plain(done.value or '')}.")
    else:
        output.notice(f"Cleared {output.plain(done.value or '')}…: {done.removed:,} entries were removed.")

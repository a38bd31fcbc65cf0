"""`python -m infra.cdn purge --cache FOLDER KEY…`, on the host of the CDN's nginx."""

import time
from pathlib import Path
from typing import Annotated

import typer

from infra.cdn.purge import purge

commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@commands.callback()
def cdn() -> None:
    """The CDN's nginx."""


@commands.command("purge")
def purge_command(
    keys: Annotated[list[str], typer.Argument(help="Surrogate keys.", metavar="KEY...")],
    cache: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The folder of proxy_cache_path.")],
    settle: Annotated[float, typer.Option(min=0, help="Seconds until the second pass.")] = 2.0,
) -> None:
    """Forget the answers that have one of the keys, now and once more when those under way have arrived."""
    purged = purge(cache, keys)
    time.sleep(settle)
    purged += purge(cache, keys)
    print(f"{purged} answers purged")


if __name__ == "__main__":
    commands()

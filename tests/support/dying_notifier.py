"""A notifier killed at a named point: `python -m tests.support.dying_notifier before|after` (the announcement)."""

import functools
import os
import signal
import sys
from collections.abc import Sequence

from libs.common.serving import serve
from libs.common.settings import load
from services.notifier.app import NAME, build_app
from services.notifier.settings import Settings
from services.notifier.streams import Announcement, Streams

announce = Streams.announce


async def announce_and_die(self: Streams, announcements: Sequence[Announcement]) -> list[int]:
    if sys.argv[1] == "after":
        await announce(self, announcements)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


if __name__ == "__main__":
    Streams.announce = announce_and_die  # type: ignore[method-assign]
    settings = load(Settings, os.environ, prefix="NOTIFIER_")
    serve(NAME, functools.partial(build_app, settings), settings, host=settings.host, port=settings.port)

"""A service as a process, or as several: how it starts, and how it goes.

It goes until SIGTERM and then: not ready → drain → stop accepting → finish what is in flight → clean up.
"""

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import structlog
import uvloop
from aiohttp import web

from libs.common import logs, tracing, workers
from libs.common.connections import Runner, end_connections
from libs.common.service import READINESS, STREAMS, Readiness, add_probes
from libs.common.settings import ServiceSettings

_SHUTDOWN_SECONDS = 20.0
# How long a connection that was made at the last moment may take to send its first request.
_LAST_SECONDS = 1.0
log = structlog.get_logger()


class StartError(Exception):
    """The service cannot start; the message says why in one sentence."""


def serve(
    name: str,
    build_app: Callable[[], web.Application],
    settings: ServiceSettings,
    *,
    host: str,
    port: int,
    processes: int = 1,
    metrics_port: int = 0,
) -> None:
    """Run a service until SIGTERM or SIGINT. Exits with 1 and one sentence when it cannot start.

    With several `processes` they share the port, and number n, from 0, also answers probes and `/metrics` at
    `metrics_port` + n, for itself.
    """
    logs.configure(name, level=settings.log_level, log_format=settings.log_format)
    worker = None
    if processes > 1:
        try:
            sockets = workers.listen(host, port, processes)
        except OSError as error:
            sys.exit(f"{name} {_cannot_listen(host, port, error)}")
        worker = workers.become_worker(name, sockets)
        logs.configure(name, level=settings.log_level, log_format=settings.log_format, worker=worker.number)
    place = _Place(host, port, worker, metrics_port)
    traces = tracing.configure(name, endpoint=settings.otlp_endpoint, sample_ratio=settings.trace_sample_ratio)
    try:
        uvloop.run(_serve(build_app, place, settings.drain_seconds))
    except StartError as error:
        if worker is not None:
            worker.cannot_start(f"{name} {error}")
        sys.exit(f"{name} {error}")
    finally:
        traces.shutdown()


class _Place(NamedTuple):
    """Where a process listens."""

    host: str
    port: int
    worker: workers.Worker | None
    metrics_port: int

    async def open(self, runner: web.AppRunner) -> list[web.BaseSite]:
        """Listen.

        Raises:
            StartError: when somebody else does.
        """
        sites: list[web.BaseSite] = []
        if self.worker is None:
            sites.append(web.TCPSite(runner, self.host, self.port, backlog=workers.BACKLOG))
        else:
            sites += [web.SockSite(runner, own, backlog=workers.BACKLOG) for own in self.worker.sockets]
        for site in sites:
            await self._start(site, self.port)
        return sites

    async def open_own(self, readiness: Readiness) -> web.AppRunner | None:
        """Listen at the worker's own port, if it has one.

        Raises:
            StartError: when somebody else does.
        """
        if self.worker is None:
            return None
        app = web.Application()
        app[READINESS] = readiness
        add_probes(app)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        port = self.metrics_port + self.worker.number
        await self._start(web.TCPSite(runner, self.host, port), port)
        return runner

    async def _start(self, site: web.BaseSite, port: int) -> None:
        try:
            await site.start()
        except OSError as error:
            raise StartError(_cannot_listen(self.host, port, error)) from error


async def _serve(build_app: Callable[[], web.Application], place: _Place, drain_seconds: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = _built(build_app)
    readiness = app[READINESS]
    runner = Runner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS, handler_cancellation=not app[STREAMS])
    own = None
    try:
        if not await _set_up(runner, stop):
            return
        own = await place.open_own(readiness)
        sites = await place.open(runner)
        # What was built at start lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        readiness.started = True
        log.info("started", host=place.host, port=place.port)
        await stop.wait()
        readiness.draining = True
        log.info("draining", seconds=drain_seconds)
        await _drain(runner, sites, drain_seconds)
    finally:
        await runner.cleanup()
        if own is not None:
            await own.cleanup()
        log.info("stopped")


async def _drain(runner: web.AppRunner, sites: list[web.BaseSite], seconds: float) -> None:
    """Serve for `seconds`, then accept no more, and let connections that were just made send what they were made for.

    Every answer ends its connection meanwhile, so that nobody sends a request on one that is about to be closed.
    """
    if runner.server is not None:
        end_connections(runner.server)
    await asyncio.sleep(seconds)
    for site in sites:
        await site.stop()
    last = time.monotonic() + min(seconds, _LAST_SECONDS)
    while runner.server is not None and runner.server.connections and time.monotonic() < last:  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # aiohttp tells nobody when a connection ends


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    return f"cannot listen on {host}:{port}: {error.strerror or error}"


def _built(build_app: Callable[[], web.Application]) -> web.Application:
    try:
        return build_app()
    except Exception as error:
        log.exception("start_failed")
        raise StartError(f"cannot start: {error!r}") from error


async def _set_up(runner: web.AppRunner, stop: asyncio.Event) -> bool:
    """Start what the application needs; False when the service was told to stop while it waited for that."""
    setup = asyncio.create_task(runner.setup())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({setup, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not setup.done():
        setup.cancel()
        await asyncio.wait({setup})
        return False
    try:
        setup.result()
    except Exception as error:
        log.exception("start_failed")
        raise StartError(f"cannot start: {error}") from error
    return True

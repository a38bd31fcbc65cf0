"""A service of three processes that say who they are, can be killed from within, and fail to start when told so."""

import asyncio
import os
import signal
from pathlib import Path

from aiohttp import web

from libs.common import settings
from libs.common.service import add_service_defaults
from libs.common.serving import serve
from libs.common.settings import ServiceSettings

PROCESSES = 3


def build_app() -> web.Application:
    trouble = Path(os.environ["TROUBLE"])
    if trouble.exists():
        match trouble.read_text():
            case "no start":
                raise ValueError("no signing key")
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
    app = web.Application()
    add_service_defaults(app)

    async def who(_request: web.Request) -> web.Response:
        return web.Response(text=str(os.getpid()))

    async def slow(_request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response(text="done")

    app.router.add_get("/who", who)
    app.router.add_get("/slow", slow)
    return app


if __name__ == "__main__":
    serve(
        "group",
        build_app,
        settings.load(ServiceSettings, os.environ, prefix="GROUP_"),
        host="127.0.0.1",
        port=int(os.environ["NOTIFIER_PORT"]),
        processes=PROCESSES,
        metrics_port=int(os.environ["METRICS"]),
    )

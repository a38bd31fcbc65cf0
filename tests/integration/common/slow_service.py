"""A service with one slow route, in the frame that every service stands in."""

import asyncio
import os

from aiohttp import web

from libs.common import settings
from libs.common.service import add_service_defaults
from libs.common.serving import serve
from libs.common.settings import ServiceSettings

started = 0


def build_app() -> web.Application:
    app = web.Application()
    add_service_defaults(app)

    async def slow(_request: web.Request) -> web.Response:
        global started  # noqa: PLW0603 (one process, one test)
        started += 1
        await asyncio.sleep(2)
        return web.Response(text="done")

    async def number(_request: web.Request) -> web.Response:
        return web.Response(text=str(started))

    app.router.add_get("/slow", slow)
    app.router.add_get("/started", number)
    return app


if __name__ == "__main__":
    serve(
        "slow",
        build_app,
        settings.load(ServiceSettings, os.environ, prefix="SLOW_"),
        host="127.0.0.1",
        port=int(os.environ["NOTIFIER_PORT"]),
    )

"""The caller's deadline, as a service reads and keeps it."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from libs.common import background, deadlines
from libs.common.problems import Problem


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1500", 1.5), ("0", 0.0), ("", None), ("-1", None), ("1.5", None), ("x", None), ("٣", None), ("1" * 10, None)],
)
def test_only_milliseconds_are_a_deadline(text: str, seconds: float | None) -> None:
    assert deadlines.seconds_left({deadlines.HEADER: text}) == seconds


async def keep(headers: dict[str, str], handler: deadlines.Handler) -> web.StreamResponse:
    return await deadlines.keep(make_mocked_request("GET", "/", headers=headers), handler)


async def slow(_request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


async def test_work_is_given_up_when_the_callers_time_is_over() -> None:
    with pytest.raises(Problem) as raised:
        await keep({deadlines.HEADER: "10"}, slow)
    assert (raised.value.status, raised.value.code) == (504, "deadline_exceeded")


async def test_what_must_be_finished_is_finished() -> None:
    done = []

    async def commit() -> None:
        await asyncio.sleep(0.1)
        done.append(True)

    async def write(_request: web.Request) -> web.Response:
        await background.finish(commit())
        return web.Response()

    with pytest.raises(Problem):
        await keep({deadlines.HEADER: "10"}, write)
    assert done


async def test_a_time_out_of_the_handlers_own_is_not_the_callers() -> None:
    async def impatient(_request: web.Request) -> web.Response:
        raise TimeoutError("the database")

    with pytest.raises(TimeoutError, match="the database"):
        await keep({deadlines.HEADER: "60000"}, impatient)


async def test_without_a_deadline_nothing_ends() -> None:
    async def quick(_request: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        return web.Response(status=204)

    assert (await keep({}, quick)).status == 204
    assert (await keep({deadlines.HEADER: "60000"}, quick)).status == 204

"""A sample belongs to the innermost frame that a part names."""

from tests.bench.profiles import LOOP, parts_of

LOOPING = (
    "<module> (services/gateway/__main__.py:9);serve (libs/common/serving.py:120);Runner.run (asyncio/runners.py:1)"
)
HANDLED = f"{LOOPING};RequestHandler.start (aiohttp/web_protocol.py:1);get (services/gateway/endpoints.py:2)"
WRITER = "StreamWriter._writelines (aiohttp/http_writer.py:3)"


def test_what_a_library_does_for_another_is_that_ones() -> None:
    stacks = [
        f"{LOOPING} 10",
        f"{HANDLED} 20",
        f"{HANDLED};ReadThroughCache.get (libs/common/cache/readthrough.py:1) 30",
        f"{HANDLED};ReadThroughCache.get (libs/common/cache/readthrough.py:1);Redis.mget (redis/commands/core.py:4) 40",
    ]
    assert parts_of(stacks) == {LOOP: 0.1, "handlers": 0.2, "the cache": 0.3, "Redis: client and socket": 0.4}


def test_writing_is_of_the_server_or_of_the_client() -> None:
    stacks = [
        f"{HANDLED};Response.write_eof (aiohttp/web_response.py:7);{WRITER} 1",
        f"{HANDLED};ClientRequest.send (aiohttp/client_reqrep.py:7);{WRITER} 3",
    ]
    assert parts_of(stacks) == {"writing the answer": 0.25, "asking the tickets service": 0.75}

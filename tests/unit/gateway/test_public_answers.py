"""Answers that everybody may keep."""

import gzip

import brotli
import pytest
from aiohttp.test_utils import make_mocked_request

from services.gateway.answers.public import IMMUTABLE, PublicAnswer

BODY = b"a long text " * 500
ANSWER = PublicAnswer(BODY, "text/plain", surrogate_keys=["one", "two"])


async def test_it_says_who_may_keep_it_and_by_what_it_is_purged() -> None:
    answer = await ANSWER.get(make_mocked_request("GET", "/"))
    assert (answer.status, answer.body) == (200, BODY)
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert answer.headers["Surrogate-Key"] == "one two"
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert answer.headers["Content-Type"] == "text/plain"
    assert IMMUTABLE == "public, max-age=31536000, immutable"


@pytest.mark.parametrize(
    ("accepted", "coding", "decoded"),
    [("gzip", "gzip", gzip.decompress), ("gzip, br", "br", brotli.decompress), ("identity", None, bytes)],
)
async def test_each_coding_is_a_representation_of_its_own(accepted: str, coding: str | None, decoded: object) -> None:
    plain = await ANSWER.get(make_mocked_request("GET", "/"))
    answer = await ANSWER.get(make_mocked_request("GET", "/", headers={"Accept-Encoding": accepted}))
    assert answer.headers.get("Content-Encoding") == coding
    assert isinstance(answer.body, bytes)
    assert decoded(answer.body) == BODY  # type: ignore[operator]
    assert (answer.headers["ETag"] == plain.headers["ETag"]) is (coding is None)
    again = await ANSWER.get(
        make_mocked_request("GET", "/", headers={"Accept-Encoding": accepted, "If-None-Match": answer.headers["ETag"]})
    )
    assert (again.status, again.body) == (304, None)
    for name in ("ETag", "Vary", "Cache-Control", "Surrogate-Key"):
        assert again.headers[name] == answer.headers[name]


async def test_what_is_short_is_not_encoded() -> None:
    short = PublicAnswer(b"short", "text/plain", surrogate_keys=["one"])
    answer = await short.get(make_mocked_request("GET", "/", headers={"Accept-Encoding": "gzip"}))
    assert (answer.body, answer.headers.get("Content-Encoding")) == (b"short", None)

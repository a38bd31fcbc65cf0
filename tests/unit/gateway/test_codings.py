"""Which content coding a client takes best, and that a body is the same in each."""

import gzip

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.cache.local import Entry
from libs.common.consistency import Position
from services.gateway.answers.codings import CODINGS, SHORTEST, coding_for, coding_of, encoded
from services.gateway.answers.stored import body_of, etag_in, headers_of, matches

LONG = b"A long answer. " * 100


def entry(body: bytes = LONG) -> Entry:
    headers = {"Content-Type": "application/json", "ETag": '"3"'}
    return Entry(body, headers, Position(1, 1), Position(1, 2), ("s",))


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip, deflate, br, zstd", "br"),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("br;q=0.5, gzip;q=0.9", "gzip"),
        ("br; q=0.5 , gzip; q=0.5", "br"),
        ("*", "br"),
        ("*;q=0.1, br;q=0", "gzip"),
        ("gzip;q=0", "identity"),
        ("gzip;q=0.2, identity", "identity"),
        ("identity", "identity"),
        ("deflate, zstd", "identity"),
        ("", "identity"),
        ("gzip;q=high", "identity"),
    ],
)
def test_the_coding_a_client_likes_best_is_taken(accept: str, coding: str) -> None:
    assert coding_of(accept) == coding


@given(st.text(alphabet='gzipbr*;q=0.15, "-', max_size=40))
def test_no_accept_encoding_is_an_error(accept: str) -> None:
    assert coding_of(accept) in {*CODINGS, "identity"}


@given(st.binary(max_size=5000))
def test_a_body_is_the_same_in_each_coding(body: bytes) -> None:
    assert gzip.decompress(encoded(body, "gzip")) == body
    assert brotli.decompress(encoded(body, "br")) == body


def test_a_body_is_encoded_once() -> None:
    kept = entry()
    assert body_of(kept, "br") is body_of(kept, "br")
    assert body_of(kept, "identity") is kept.body


def test_what_fits_a_packet_is_sent_as_it_is() -> None:
    assert coding_for(b"x" * (SHORTEST - 1), "br") == "identity"
    assert coding_for(b"x" * SHORTEST, "br") == "br"
    assert coding_for(LONG, None) == "identity"


def test_each_coding_has_its_own_strong_tag_and_any_of_them_names_the_state() -> None:
    tags = [headers_of(entry(), coding, "l1", not_modified=False)["ETag"] for coding in ("identity", *CODINGS)]
    assert len(set(tags)) == 3
    assert all(tag.startswith('"') and tag.endswith('"') for tag in tags)
    assert all(matches(tag, '"3"') for tag in tags)
    assert not matches(etag_in('"33"', "br"), '"3"')


def test_an_answer_without_a_body_says_nothing_of_its_coding() -> None:
    headers = headers_of(entry(), "gzip", "l1", not_modified=True)
    assert headers["ETag"] == '"3-gzip"'
    assert not {"Content-Type", "Content-Encoding"} & headers.keys()

"""Whose word on the client's address counts."""

import ipaddress
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.edge.proxies import FORWARDED, X_FORWARDED, Client, TrustedProxies, network

PEER = "10.0.0.1"
TRUSTED = [network(text) for text in ("10.0.0.0/8", "2001:db8::/32", "192.0.2.7")]
NOT_PUBLIC = st.sampled_from(["10.1.2.3", "192.0.2.7", "2001:db8::5"])
PUBLIC = st.sampled_from(["198.51.100.1", "203.0.113.9", "2a00::1", "192.0.2.8"])


def client(
    headers: list[tuple[str, str]], *, peer: str | None = PEER, header: str = X_FORWARDED, trusted: Any = TRUSTED
) -> Client:
    transport: Any = type("Transport", (), {"get_extra_info": lambda _self, _name: (peer, 1) if peer else ""})()
    request = make_mocked_request("GET", "/", headers=headers, transport=transport)
    return TrustedProxies(trusted, header=header).client(request.remote or "", request.headers)


@pytest.mark.parametrize(
    ("addresses", "protocols", "expected"),
    [
        ((), (), (PEER, "http")),
        ((), ("https",), (PEER, "https")),
        (("198.51.100.1",), (), ("198.51.100.1", "http")),
        (("198.51.100.1",), ("https",), ("198.51.100.1", "https")),
        (("198.51.100.1",), ("HTTPS",), ("198.51.100.1", "https")),
        (("198.51.100.1",), ("javascript",), ("198.51.100.1", "http")),
        # From the right, until the first that is no proxy: the rest is what the client made up.
        (("203.0.113.9, 198.51.100.1",), ("https",), ("198.51.100.1", "https")),
        (("203.0.113.9", "198.51.100.1"), ("https",), ("198.51.100.1", "https")),
        (("203.0.113.9, 198.51.100.1, 10.2.3.4",), ("https",), ("198.51.100.1", "https")),
        (("203.0.113.9, 198.51.100.1, 10.2.3.4, 192.0.2.7",), ("https",), ("198.51.100.1", "https")),
        (("10.9.9.9, 10.2.3.4",), ("https",), ("10.9.9.9", "https")),
        # Of as many schemes as addresses, the client's; else the nearest proxy's.
        (("198.51.100.1, 10.2.3.4",), ("https, http",), ("198.51.100.1", "https")),
        (("198.51.100.1, 10.2.3.4",), ("https, http, http",), ("198.51.100.1", "http")),
        (("198.51.100.1, 10.2.3.4",), ("https",), ("198.51.100.1", "https")),
        # What is no address ends the walk at the last that is known.
        (("unknown",), (), (PEER, "http")),
        (("198.51.100.1, unknown",), (), (PEER, "http")),
        (("198.51.100.1, junk, 10.2.3.4",), (), ("10.2.3.4", "http")),
        (("198.51.100.1,",), (), (PEER, "http")),
        ((" 198.51.100.1:1234 ",), (), ("198.51.100.1", "http")),
        (("[2a00::1]:1234",), (), ("2a00::1", "http")),
        (("2a00::1",), (), ("2a00::1", "http")),
        (("198.51.100.1, ::ffff:10.1.1.1",), (), ("198.51.100.1", "http")),
        (("198.51.100.1, 2001:db8:1::1",), (), ("198.51.100.1", "http")),
        (("999.1.1.1",), (), (PEER, "http")),
    ],
)
def test_x_forwarded(addresses: tuple[str, ...], protocols: tuple[str, ...], expected: tuple[str, str]) -> None:
    headers = [("X-Forwarded-For", line) for line in addresses] + [("X-Forwarded-Proto", line) for line in protocols]
    assert client(headers) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((), (PEER, "http")),
        (("for=198.51.100.1",), ("198.51.100.1", "http")),
        (("For=198.51.100.1;Proto=https;by=10.0.0.1",), ("198.51.100.1", "https")),
        (('for="198.51.100.1:47011"; proto="https"',), ("198.51.100.1", "https")),
        (('for="[2a00::1]:4711";proto=https',), ("2a00::1", "https")),
        (("for=203.0.113.9;proto=https, for=198.51.100.1;proto=http, for=10.2.3.4",), ("198.51.100.1", "http")),
        (("for=203.0.113.9;proto=https", "for=198.51.100.1"), ("198.51.100.1", "http")),
        (('for="_a,for=203.0.113.9";proto=https',), (PEER, "https")),
        (("for=_hidden;proto=https",), (PEER, "https")),
        (("for=unknown",), (PEER, "http")),
        (("for=198.51.100.1, junk",), (PEER, "http")),
        (('for="198.51.100.1',), ("198.51.100.1", "http")),
        (("proto=https",), (PEER, "https")),
    ],
)
def test_forwarded(lines: tuple[str, ...], expected: tuple[str, str]) -> None:
    assert client([("Forwarded", line) for line in lines], header=FORWARDED) == expected


def test_the_header_that_the_proxies_do_not_write_is_the_clients() -> None:
    both = [("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-Proto", "https"), ("Forwarded", "for=203.0.113.9")]
    assert client(both) == ("198.51.100.1", "https")
    assert client(both, header=FORWARDED) == ("203.0.113.9", "http")


@pytest.mark.parametrize("peer", ["198.51.100.1", "11.0.0.1", "192.0.2.8"])
def test_a_stranger_is_not_believed(peer: str) -> None:
    assert client([("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "https")], peer=peer) == (peer, "http")


def test_without_proxies_nobody_is_believed() -> None:
    assert client([("X-Forwarded-For", "203.0.113.9")], trusted=()) == (PEER, "http")


def test_a_connection_without_an_address_has_none() -> None:
    assert client([("X-Forwarded-For", "203.0.113.9")], peer=None).address == ""


@given(made_up=st.lists(st.text(max_size=20), max_size=3), real=PUBLIC, proxies=st.lists(NOT_PUBLIC, max_size=3))
def test_whatever_a_client_writes_its_address_is_the_one_the_proxies_saw(
    made_up: list[str], real: str, proxies: list[str]
) -> None:
    line = ", ".join([*made_up, real, *proxies])
    assert client([("X-Forwarded-For", line)]).address == real
    nodes = [f'"[{address}]"' if ":" in address else address for address in (real, *proxies)]
    elements = [f"for={node}" for node in (*made_up, *nodes)]
    if not any('"' in text for text in made_up):  # an open quote takes in what follows: then nobody is known
        assert client([("Forwarded", ", ".join(elements))], header=FORWARDED).address == real


@given(st.text(max_size=60), st.sampled_from([X_FORWARDED, FORWARDED]))
def test_no_header_is_an_error(text: str, header: str) -> None:
    found = client([("X-Forwarded-For", text), ("X-Forwarded-Proto", text), ("Forwarded", text)], header=header)
    assert ipaddress.ip_address(found.address)
    assert found.scheme in {"http", "https"}


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "10.0.0.1/8", "desk.example.com", "10.0.0"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        network(text)

"""Ports: defaults, overrides, and what is said when one is taken. (These bind a socket: that is the subject.)"""

import os
import socket
from collections.abc import Iterator

import pytest

from infra.local import ports
from infra.local.errors import LauncherError


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind((ports.HOST, 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_variable_changes_one_port_and_leaves_the_defaults() -> None:
    chosen = ports.from_environment({"GATEWAY_PORT": "9000", "UNRELATED_PORT": "1"})
    assert chosen == ports.DEFAULT_PORTS | {"GATEWAY_PORT": 9000}


@pytest.mark.parametrize("value", ["", "http", "0", "65536", "-1", "80.0", "٣"])
def test_a_port_that_is_none_is_refused_with_the_name_of_its_variable(value: str) -> None:
    with pytest.raises(LauncherError, match="KAFKA_PORT must be a port"):
        ports.from_environment({"KAFKA_PORT": value})


def test_two_parts_cannot_have_the_same_port() -> None:
    with pytest.raises(LauncherError, match="REDIS_PORT and GATEWAY_PORT are both 8080"):
        ports.from_environment({"REDIS_PORT": "8080"})


def test_a_busy_port_is_named_with_its_part_its_holder_and_the_variable_to_change(taken_port: int) -> None:
    with pytest.raises(LauncherError) as raised:
        ports.require_free(taken_port, "kafka", "KAFKA_PORT")
    sentence = str(raised.value)
    assert f"Port {taken_port}, which kafka needs" in sentence
    assert f"(pid {os.getpid()})" in sentence
    assert "KAFKA_PORT=" in sentence


def test_free_ports_are_distinct_and_not_where_outgoing_connections_come_from() -> None:
    found = ports.free_ports(50)
    assert len(set(found)) == 50
    assert all(port < 32_768 for port in found)


def test_no_ports_at_all_may_be_asked_for() -> None:
    assert ports.free_ports(0) == []


def test_a_taken_port_is_not_free(taken_port: int) -> None:
    assert not ports.is_free(taken_port)

"""Which ports the parts listen on: fixed defaults for `make run`, free ones for test stacks."""

import random
import socket
from collections.abc import Mapping

import psutil

from infra.local.errors import LauncherError

HOST = "127.0.0.1"

# Variable → default. Each can be changed by setting the variable.
DEFAULT_PORTS = {
    "GATEWAY_PORT": 8080,
    "TICKETS_PORT": 8081,
    "NOTIFIER_PORT": 8082,
    "SEARCH_PORT": 8083,
    "POSTGRES_PORT": 15432,
    "POSTGRES_REPLICA_PORT": 15433,
    "KAFKA_PORT": 19092,
    "KAFKA_CONTROLLER_PORT": 19093,
    "REDIS_PORT": 16379,
    "CACHE_REDIS_PORT": 16380,
}

# Below the range from which Linux takes the ports of outgoing connections (32768 and up): a port
# that is free now cannot be taken by a client socket a moment later.
FREE_RANGE = range(20_000, 32_000)


def from_environment(environ: Mapping[str, str]) -> dict[str, int]:
    """The ports of `make run`; raises LauncherError for a value that is not a port or is used twice."""
    ports: dict[str, int] = {}
    for variable, default in DEFAULT_PORTS.items():
        text = environ.get(variable, str(default))
        if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 65_535:
            raise LauncherError(f"{variable} must be a port between 1 and 65535, not {text!r}.")
        port = int(text)
        for other, taken in ports.items():
            if taken == port:
                raise LauncherError(f"{variable} and {other} are both {port}; give each its own port.")
        ports[variable] = port
    return ports


def any_free() -> dict[str, int]:
    """A free port for every variable."""
    return dict(zip(DEFAULT_PORTS, free_ports(len(DEFAULT_PORTS)), strict=True))


def free_ports(count: int) -> list[int]:
    """`count` distinct ports on which nobody listens now."""
    found: list[int] = []
    for port in random.sample(FREE_RANGE, len(FREE_RANGE)):
        if len(found) == count:
            return found
        if is_free(port):
            found.append(port)
    raise LauncherError(f"No {count} free ports between {FREE_RANGE.start} and {FREE_RANGE.stop}.")


def is_free(port: int) -> bool:
    """Whether a server could listen on the loopback port right now."""
    with socket.socket() as probe:
        # Like every server here: a port in TIME_WAIT after a restart counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError:
            raise LauncherError(f"Port {port} may only be used by root; choose one above 1023.") from None
        except OSError:
            return False
        return True


def require_free(port: int, part: str, variable: str) -> None:
    """Raise LauncherError naming the holder when the port is taken."""
    if not is_free(port):
        raise LauncherError(
            f"Port {port}, which {part} needs, is in use by {_holder(port)}; "
            f"stop that or choose another port with {variable}=…"
        )


def _holder(port: int) -> str:
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return "another process"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                break
    return "another process"

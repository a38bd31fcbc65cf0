"""What a benchmark hands over, and the load generator."""

import asyncio
import math
import re
import uuid
from pathlib import Path

import msgspec

from infra.local.stack import Stack
from libs.common.identity import HEADER as PRINCIPAL_HEADER
from libs.common.identity import Principal, Signer
from libs.common.models import Role
from tests.support.clients import Tenant

_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_PERCENTILE = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)$", re.MULTILINE)
_P95 = re.compile(r"^P95 ([\d.]+)$", re.MULTILINE)
_REFUSED = re.compile(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)")
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
CONNECTIONS = 16


class Figure(msgspec.Struct, frozen=True):
    """One measurement beside its baseline, taken in the same run."""

    what: str
    ours: float
    baseline: float
    baseline_name: str
    unit: str


class Load(msgspec.Struct, frozen=True):
    """`rate` in requests per second, latencies in milliseconds at the client; `p95` where a script prints it."""

    rate: float
    p50: float
    p99: float
    p95: float = math.nan


def principal_of(tenant: Tenant) -> Principal:
    """The tenant's first user, as by an API key."""
    return Principal(
        organization_id=uuid.UUID(tenant.organization_id),
        user_id=uuid.UUID(tenant.users[0]["id"]),
        name="bench",
        role=Role.ADMIN,
        credential="api_key",
        credential_id="bench",
    )


def internal_headers(stack: Stack, tenant: Tenant) -> dict[str, str]:
    """What the gateway would send the tickets service for the tenant's first user; good for a minute."""
    signer = Signer(stack.credentials.signing_key("gateway"))
    return {PRINCIPAL_HEADER: signer.principal_token(principal_of(tenant), "tickets")}


async def wrk(
    url: str,
    seconds: float,
    *,
    headers: dict[str, str] | None = None,
    script: Path | None = None,
    connections: int = CONNECTIONS,
) -> Load:
    """Load `url` (on loopback) for `seconds` over `connections` connections from one thread.

    Raises:
        RuntimeError: when a request failed, for a figure of failures says nothing.
    """
    arguments = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency"]
    for name, value in (headers or {}).items():
        arguments += ["-H", f"{name}: {value}"]
    if script is not None:
        arguments += ["-s", str(script)]
    process = await asyncio.create_subprocess_exec(*arguments, url, stdout=asyncio.subprocess.PIPE)
    out, _err = await process.communicate()
    text = out.decode()
    rate = _RATE.search(text)
    latency = {p: float(value) * _MILLISECONDS[unit] for p, value, unit in _PERCENTILE.findall(text)}
    if process.returncode != 0 or rate is None or _REFUSED.search(text) or len(latency) < 2:
        raise RuntimeError(f"wrk could not measure {url}:\n{text}")
    p95 = _P95.search(text)
    return Load(float(rate[1]), latency["50"], latency["99"], float(p95[1]) if p95 else math.nan)

"""Nine reads to one creation, of several organizations, by more and more clients of one gateway."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from infra.local.stack import Stack
from tests.bench.figures import Figure, Load, wrk
from tests.support.clients import Tenant, client

TICKETS = 50  # an organization's that are read
CLIENTS = (2, 4, 8, 12, 16, 24, 32, 48, 64)
PROMISED_RATE = 1000.0
PROMISED_MS = 100.0
_SCRIPT = """
math.randomseed(1)
local desks = {{ {desks} }}
request = function()
  local desk = desks[math.random(#desks)]
  local headers = {{ ["Authorization"] = desk.key }}
  if math.random() < 0.9 then
    return wrk.format("GET", desk.paths[math.random(#desk.paths)], headers)
  end
  headers["Content-Type"] = "application/json"
  return wrk.format("POST", "/api/tickets", headers, '{{"title": "Mixed in"}}')
end
done = function(summary, latency, requests)
  io.write(string.format("P95 %f\\n", latency:percentile(95) / 1000))
end
"""


async def measure(stack: Stack, tenants: Sequence[Tenant], seconds: float) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "mixed.lua"
        script.write_text(_SCRIPT.format(desks=", ".join([await _desk(stack, tenant) for tenant in tenants])))
        url = stack.service_url("gateway")
        await wrk(url, 1.0, script=script)
        best = Load(0.0, 0.0, 0.0, 0.0)
        for clients in CLIENTS:
            load = await wrk(url, seconds, script=script, connections=clients)
            if load.p95 <= PROMISED_MS and load.rate > best.rate:
                best = load
    name = "90 % reads, 10 % writes, one gateway: highest rate at a P95 below 100 ms"
    return [
        Figure(name, best.rate, PROMISED_RATE, "promised", "requests/s"),
        Figure(f"{name}, its P95 at the client", best.p95, PROMISED_MS, "promised", "ms"),
        Figure("90 % reads, 10 % writes, 64 clients: rate", load.rate, PROMISED_RATE, "promised", "requests/s"),
        Figure("90 % reads, 10 % writes, 64 clients: P95 at the client", load.p95, PROMISED_MS, "promised", "ms"),
    ]


async def _desk(stack: Stack, tenant: Tenant) -> str:
    """A tenant's key and tickets, as Lua."""
    paths = []
    async with client(stack, tenant) as http:
        for _ in range(TICKETS):
            async with http.post("/api/tickets", json={"title": "Read often", "description": "word " * 60}) as answer:
                paths.append(json.dumps(answer.headers["Location"]))
    return f"{{ key = {json.dumps(tenant.headers['Authorization'])}, paths = {{ {', '.join(paths)} }} }}"

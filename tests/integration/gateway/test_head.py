"""HEAD is answered as GET is, without the body (RFC 9110, section 9.3.2)."""

import pytest

from services.gateway.endpoints import ENDPOINTS
from tests.integration.gateway.test_bad_input import ticket
from tests.support.desk import Desk, Reply
from tests.support.raw_http import connection

__all__ = ["ticket"]

PATHS = [endpoint.path for endpoint in ENDPOINTS if endpoint.method == "GET"]
ANY = "0196f3a1-5c1e-7c44-9a3b-1d2f6c0b7e11"
CHANGING = {"date", "ratelimit", "relaydesk-cache", "relaydesk-consistency"}
# Their bodies tell a duration or a count, so the length may differ; a search's ETag is of its body.
OF_THE_MOMENT = {"/api/health", "/api/admin/cache", "/api/reports/backlog", "/api/search"}


async def head(desk: Desk, target: str) -> Reply:
    async with connection(desk.gateways[0].port) as client:
        lines = f"HEAD {target} HTTP/1.1", "Host: desk", "Connection: close", f"Authorization: Bearer {desk.acme.key}"
        await client.send("\r\n".join((*lines, "", "")).encode())
        told, _, body = (await client.rest()).decode().partition("\r\n\r\n")
    status, *fields = told.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    return Reply(int(status.split()[1]), headers, body.encode())


@pytest.mark.parametrize("path", [*PATHS, "/api/tickets/MISSING"])
async def test_head_has_the_headers_of_get_and_no_body(desk: Desk, ticket: str, path: str) -> None:
    target = path.replace("{ticket_id}", ticket).replace("MISSING", ANY)
    if path == "/api/search":
        target += "?q=printer"
    got = await desk.ask("GET", target, who=desk.acme)
    told = await head(desk, target)
    assert (told.status, told.body) == (got.status, b"")
    changing = CHANGING | ({"content-length", "etag"} if path in OF_THE_MOMENT else set())
    assert told.headers.keys() - CHANGING == got.headers.keys() - CHANGING
    assert {n: v for n, v in told.headers.items() if n not in changing} == {
        n: v for n, v in got.headers.items() if n not in changing
    }
    assert int(told.headers["content-length"]) > 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT"])
async def test_the_path_of_bulk_requests_is_no_ticket(desk: Desk, method: str) -> None:
    target = "/api/tickets/bulk"
    reply = await head(desk, target) if method == "HEAD" else await desk.ask(method, target, who=desk.acme)
    assert (reply.status, reply.headers["allow"]) == (405, "PATCH, POST")

"""The gateway answers as its OpenAPI document says: everything of it, tried out by Schemathesis."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import requests
import schemathesis

from infra.local.stack import Stack
from services.gateway.callers.authentication import CSRF_HEADER
from services.gateway.description import openapi
from tests.support.clients import Tenant, provision
from tests.support.pages import CHECKOUT
from tests.support.processes import TestedService, running_service

CONFIGURATION = CHECKOUT / "tests" / "support" / "described" / "schemathesis.toml"
SECONDS = int(os.environ.get("DESCRIBED_SECONDS", "60"))
SEED = os.environ.get("DESCRIBED_SEED", "1")


class Described(msgspec.Struct, frozen=True):
    """A gateway with all its services, and whom to speak for."""

    url: str
    tenant: Tenant
    log: Path


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def described(
    stack: Stack, topic: str, notifier: TestedService, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Described]:
    folder = tmp_path_factory.mktemp("described")
    async with (
        running_service(stack, "tickets", folder / "tickets.log", TICKETS_TOPIC_PARTITIONS="3") as tickets,
        running_service(stack, "search", folder / "search.log", SEARCH_TICKETS_URL=tickets.url) as search,
        running_service(
            stack,
            "gateway",
            folder / "gateway.log",
            GATEWAY_TICKETS_URL=tickets.url,
            GATEWAY_SEARCH_URL=search.url,
            GATEWAY_NOTIFIER_URL=notifier.url,
        ) as gateway,
    ):
        yield Described(gateway.url, await provision(stack), folder / "gateway.log")


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize(
    ("phases", "seconds"),
    [("examples,coverage,fuzzing", SECONDS * 2 // 3), ("stateful", SECONDS // 3)],
    ids=["each-by-itself", "one-after-the-other"],
)
async def test_schemathesis_finds_nothing(described: Described, tmp_path: Path, phases: str, seconds: int) -> None:
    tenant = described.tenant
    user = tenant.users[0]
    environment = {
        "PYTHONPATH": str(CHECKOUT),
        "DESCRIBED_USER": user["id"],
        "DESCRIBED_ORGANIZATION": tenant.slug,
        "DESCRIBED_EMAIL": user["email"],
        "DESCRIBED_PASSWORD": user["password"],
    }
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(CONFIGURATION), "run"),
        *(f"{described.url}/api/openapi.json", "--header", f"Authorization: Bearer {tenant.key}"),
        *("--seed", SEED, "--phases", phases, "--max-time", str(seconds), "--no-color"),
        cwd=tmp_path,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        out, _err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    told = out.decode(errors="replace")
    assert process.returncode == 0, "\n".join(line[:1000] for line in told.splitlines() if line.strip())
    if phases == "stateful":
        assert re.search(r"API Links: +[1-9]\d* covered", told), told
    else:
        selected = re.search(r"Selected: +(\d+)/\1\b", told)
        assert selected is not None, told
        assert f"Tested: {selected[1]}" in told, told
    assert "request_failed" not in described.log.read_text(encoding="utf-8")


def _operations(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(path, method) for path, methods in document["paths"].items() for method in methods]


async def test_a_session_lives_and_ends_as_described(described: Described) -> None:
    """What an API key, which Schemathesis has, cannot do."""
    await asyncio.to_thread(_live_and_end, described)


def _live_and_end(described: Described) -> None:
    document = schemathesis.openapi.from_dict(openapi.document())
    user = described.tenant.users[0]
    body = {"organization": described.tenant.slug, "email": user["email"], "password": user["password"]}
    path = f"{described.url}/api/session"
    with requests.Session() as session:
        told = session.post(path, json=body, timeout=60)
        assert told.status_code == 201, told.text
        document["/api/session"]["POST"].validate_response(told)
        # The cookie is `Secure`, which requests does not send over HTTP.
        session.headers["Cookie"] = told.headers["Set-Cookie"].partition(";")[0]
        for method, headers, status in (
            ("GET", {}, 200),
            ("DELETE", {}, 403),
            ("DELETE", {CSRF_HEADER: told.json()["csrf_token"]}, 204),
            ("GET", {}, 401),
        ):
            answer = session.request(method, path, headers=headers, timeout=60)
            assert answer.status_code == status, answer.text
            document["/api/session"][method].validate_response(answer)


async def test_every_operation_that_is_not_public_wants_a_credential(described: Described) -> None:
    await asyncio.to_thread(_without_credentials, described)


def _without_credentials(described: Described) -> None:
    document = openapi.document()
    refused = 0
    for path, method in _operations(document):
        operation = document["paths"][path][method]
        where = described.url + path.replace("{ticket_id}", _ANY).replace("{key_id}", _ANY)
        answer = requests.request(method, where, json={}, timeout=60)
        if operation["security"]:
            assert (answer.status_code, answer.json()["code"]) == (401, "authentication_required"), (method, path)
            refused += 1
        else:
            assert answer.status_code in {200, 422}, (method, path)
    assert refused > 15


_ANY = "0196f3a1-5c1e-7c44-9a3b-1d2f6c0b7e11"


async def test_a_method_that_is_not_described_is_not_allowed(described: Described) -> None:
    await asyncio.to_thread(_other_methods, described)


def _other_methods(described: Described) -> None:
    document = openapi.document()
    headers = described.tenant.headers
    for path, methods in document["paths"].items():
        where = described.url + path.replace("{ticket_id}", _ANY).replace("{key_id}", _ANY)
        for method in sorted({"get", "post", "put", "patch", "delete"} - set(methods)):
            answer = requests.request(method, where, headers=headers, json={}, timeout=60)
            assert answer.status_code == 405, (method, path)
            allowed = set(methods) | ({"head"} if "get" in methods else set())
            assert {name.strip().lower() for name in answer.headers["Allow"].split(",")} == allowed, (method, path)
            assert json.loads(answer.content)["code"] == "method_not_allowed"

"""The OpenAPI document in the repository is the one that the gateway serves."""

import json
from pathlib import Path

import msgspec

from services.gateway import openapi

COMMITTED = Path(__file__).parents[2] / "docs" / "api" / "openapi.json"


def test_the_committed_document_is_the_generated_one() -> None:
    generated = msgspec.json.format(msgspec.json.encode(openapi.document(), order="deterministic"), indent=2).decode()
    update = "python -m services.gateway openapi > docs/api/openapi.json"
    assert json.loads(COMMITTED.read_text()) == json.loads(generated), update
    assert COMMITTED.read_text() == generated + "\n", update

"""A gateway that describes itself as VERSION and lets caches keep that for MAX_AGE seconds."""

import os
from typing import Any

from services.gateway.__main__ import commands
from services.gateway.answers.public import PublicAnswer
from services.gateway.description import openapi

VERSION = os.environ["VERSION"]
describe = openapi.document


def document() -> dict[str, Any]:
    described = describe()
    described["info"]["version"] = VERSION
    return described


if __name__ == "__main__":
    openapi.document = document
    defaults = PublicAnswer.__init__.__kwdefaults__
    assert defaults is not None
    defaults["cache_control"] = f"public, max-age={os.environ['MAX_AGE']}"
    commands(["serve"])

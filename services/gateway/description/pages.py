"""`/api/openapi.json`, `/api/docs` and its stylesheet, made once at the start."""

import hashlib
from pathlib import Path

import msgspec

from services.gateway.answers.public import IMMUTABLE, PublicAnswer
from services.gateway.description import openapi, reference

_STYLES = Path(__file__).with_name("reference.css")
# The page needs its stylesheet and the icon that is in it. No script runs, whatever stands in the page.
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Description:
    """`stylesheet` is the path of `styles`; it changes with them, so that they may be kept for ever."""

    def __init__(self) -> None:
        styles = _STYLES.read_bytes()
        self.stylesheet = f"/api/docs/reference.{hashlib.sha256(styles).hexdigest()[:16]}.css"
        self.styles = PublicAnswer(styles, "text/css; charset=utf-8", surrogate_keys=["docs"], cache_control=IMMUTABLE)
        document = openapi.document()
        self.document = PublicAnswer(msgspec.json.encode(document), "application/json", surrogate_keys=["openapi"])
        self.page = PublicAnswer(
            reference.page(document, self.stylesheet).encode(),
            "text/html; charset=utf-8",
            surrogate_keys=["docs"],
            headers={"Content-Security-Policy": _POLICY},
        )

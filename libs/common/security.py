"""Headers that tell browsers what an answer must not be used for."""

from typing import Final

NOSNIFF: Final = "X-Content-Type-Options"

# Of an answer that is data: no page may show it, run it or load anything by it.
SECURITY_HEADERS: Final = {
    NOSNIFF: "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

"""Consistency tokens: how old an answer may be.

A token is a position in PostgreSQL's write-ahead log, (timeline, LSN). Whoever sends one is never answered with a
state that lacks anything written at or before it. Clients treat it as opaque.
"""

import re
from typing import NamedTuple, Self

from libs.common.problems import Problem

HEADER = "Relaydesk-Consistency"
# Between services: how far back the answer may lie, and that only the primary can tell.
AS_OF_HEADER = "Relaydesk-As-Of"
PRIMARY_HEADER = "Relaydesk-Read-Primary"
_TOKEN = re.compile(r"([0-9a-f]{8})-([0-9a-f]{16})", re.ASCII)


class Position(NamedTuple):
    """A place in the write-ahead log; ordered by timeline, then by LSN (64 bit, bytes)."""

    timeline: int
    lsn: int

    def token(self) -> str:
        """The wire form; of fixed width, so that tokens order as positions do (the cache's scripts rely on it)."""
        return f"{self.timeline:08x}-{self.lsn:016x}"

    @classmethod
    def from_token(cls, text: str) -> Self:
        """Read a token.

        Raises:
            Problem: `invalid_parameter` (400) for text that is no token.
        """
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise Problem("invalid_parameter", f"{HEADER} does not hold a consistency token.")
        return cls(int(match[1], 16), int(match[2], 16))


class Requirement(NamedTuple):
    """What a read must include: everything up to `position`; `primary` when only the primary can promise that."""

    position: Position | None = None
    primary: bool = False

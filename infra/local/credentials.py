"""Passwords and signing keys of a stack: generated once, kept in a file only its owner can read."""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from joserfc.jwk import OKPKey

from infra.local.errors import LauncherError
from infra.local.storage import read_json, write_private

SERVICES = ("gateway", "tickets", "notifier", "search")


@dataclass(frozen=True)
class Credentials:
    """What the parts of one stack share; `signing_keys` are private Ed25519 JWKs by service."""

    postgres_superuser: str
    postgres_replication: str
    postgres_owner: str
    redis: str
    cache_redis: str
    signing_keys: dict[str, dict[str, str]]

    @classmethod
    def generate(cls) -> Self:
        return cls(
            postgres_superuser=secrets.token_urlsafe(24),
            postgres_replication=secrets.token_urlsafe(24),
            postgres_owner=secrets.token_urlsafe(24),
            redis=secrets.token_urlsafe(24),
            cache_redis=secrets.token_urlsafe(24),
            signing_keys={service: _signing_key(service) for service in SERVICES},
        )

    @classmethod
    def load_or_generate(cls, path: Path) -> Self:
        """Read the file, or make it; raises LauncherError when it is damaged."""
        if not path.exists():
            # Two launchers may come here at the same time: the first one's file counts for both.
            write_private(path, json.dumps(asdict(cls.generate()), indent=2), replace=False)
        try:
            return cls(**(read_json(path) or {}))
        except TypeError:
            raise LauncherError(f"{path} is damaged; restore it, or start anew with `make clean`.") from None

    def signing_key(self, service: str) -> str:
        """The service's private JWK as JSON."""
        return json.dumps(self.signing_keys[service])

    def trusted_keys(self) -> str:
        """The JWKS with the public keys of all services, as JSON."""
        public = [OKPKey.import_key(dict(key)).as_dict(private=False) for key in self.signing_keys.values()]
        return json.dumps({"keys": public})


def _signing_key(service: str) -> dict[str, Any]:
    return dict(OKPKey.generate_key("Ed25519", {"kid": service}, private=True).as_dict(private=True))

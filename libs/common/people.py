"""Wire models of organizations, users and credentials: spoken between clients, the gateway and the tickets service."""

import datetime as dt
import uuid
from typing import Annotated

import msgspec
from msgspec import Meta

from libs.common.models import NO_NUL, NOT_BLANK, Role

_ShortText = Annotated[str, Meta(min_length=1, max_length=254, pattern=NO_NUL)]


class Organization(msgspec.Struct, frozen=True):
    id: uuid.UUID
    slug: str
    name: str


class User(msgspec.Struct, frozen=True):
    id: uuid.UUID
    email: str
    name: str
    role: Role


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`organization` is its slug; e-mail addresses belong to one organization each."""

    organization: _ShortText
    email: _ShortText
    password: Annotated[str, Meta(min_length=1, max_length=1000)]


class SignedIn(msgspec.Struct, frozen=True):
    user: User
    organization: Organization


class ResolveKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asked by the gateway: whom does the key with this SHA-256 (hexadecimal) speak for? The key itself stays there."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class ResolvedKey(msgspec.Struct, frozen=True):
    key_id: uuid.UUID
    user: User
    organization: Organization


class Session(msgspec.Struct, frozen=True):
    """The answer to a sign-in. The session itself travels in a cookie; `csrf_token` goes into X-CSRF-Token."""

    user: User
    organization: Organization
    csrf_token: str
    expires_at: dt.datetime


class WhoAmI(msgspec.Struct, frozen=True):
    """`credential` is `session` or `api_key`; `csrf_token` is told to sessions only."""

    user: User
    organization: Organization
    credential: str
    csrf_token: str | None = None


class NewApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=100, pattern=NOT_BLANK)]


class ApiKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """`key` is there in the answer to its creation and never again."""

    id: uuid.UUID
    name: str
    prefix: str
    user_id: uuid.UUID
    created_at: dt.datetime
    key: str | None = None


class ApiKeyList(msgspec.Struct, frozen=True):
    keys: list[ApiKey]


class RealtimeToken(msgspec.Struct, frozen=True):
    """What a Socket.IO client connects with: `auth={"token": token}` to `url`, until `expires_at`."""

    token: str
    expires_at: dt.datetime
    url: str

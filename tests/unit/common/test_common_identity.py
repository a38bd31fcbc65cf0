"""Internal tokens: whoever is not the gateway cannot speak for a user, and nobody can forge."""

import base64
import hmac
import time
import uuid
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OKPKey

from libs.common.identity import INTERNAL_TYPE, REALTIME_TYPE, Principal, Signer, Verifier
from libs.common.models import Role
from libs.common.problems import Problem


def key(name: str) -> OKPKey:
    return OKPKey.generate_key("Ed25519", {"kid": name})


def private(jwk: OKPKey) -> str:
    return msgspec.json.encode(jwk.as_dict(private=True)).decode()


KEYS = {name: key(name) for name in ("gateway", "tickets", "search")}
TRUSTED = msgspec.json.encode({"keys": [jwk.as_dict(private=False) for jwk in KEYS.values()]}).decode()
WHO = Principal(
    organization_id=uuid.uuid4(),
    user_id=uuid.uuid4(),
    name="Ada",
    role=Role.ADMIN,
    credential="session",
    credential_id="c",
)


def verifier(audience: str = "tickets") -> Verifier:
    return Verifier(TRUSTED, audience=audience)


def signer(name: str = "gateway") -> Signer:
    return Signer(private(KEYS[name]))


def token(*, signed_by: OKPKey | None = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token as the gateway makes it, apart from what is given."""
    now = int(time.time())
    complete = {
        "iss": "gateway",
        "aud": "tickets",
        "iat": now,
        "exp": now + 60,
        "sub": str(WHO.user_id),
        "principal": msgspec.to_builtins(WHO),
    } | claims
    head = {"alg": "Ed25519", "typ": INTERNAL_TYPE, "kid": "gateway"} | (header or {})
    return jwt.encode(head, complete, signed_by or KEYS["gateway"], algorithms=[head["alg"]])


def refused(text: str | None, check: Verifier | None = None) -> str:
    with pytest.raises(Problem) as caught:
        (check or verifier()).principal(text)
    assert (caught.value.code, caught.value.status) == ("authentication_required", 401)
    return caught.value.detail or ""


def test_the_gateway_speaks_for_users() -> None:
    made = signer().principal_token(WHO, "tickets")
    check = verifier()
    assert check.principal(made) == WHO == check.principal(made)  # the second time from memory
    assert check.principal(token()) == WHO


def test_a_users_token_opens_nothing_that_is_for_services_only() -> None:
    check = verifier()
    for _again in range(2):  # also from the verified ones it remembers
        with pytest.raises(Problem, match="speaks for a user"):
            check.service(token())


def test_a_service_speaks_for_itself_only() -> None:
    made = signer("search").service_token("tickets")
    check = verifier()
    check.service(made)
    refused(made, check)
    refused(signer().service_token("tickets"))
    forged = token(signed_by=KEYS["search"], header={"kid": "search"}, iss="search")
    check.service(forged)  # it is search that asks, whatever else it says
    refused(forged, check)
    refused(forged)


def test_a_service_cannot_name_the_gateway_as_issuer() -> None:
    assert "issuer" in refused(token(signed_by=KEYS["search"], header={"kid": "search"}))
    assert "signature" in refused(token(signed_by=KEYS["search"]))


def test_a_forged_signature_is_refused() -> None:
    assert "signature" in refused(token(signed_by=key("gateway")))
    head, body, signature = token().split(".")
    refused(f"{head}.{body}.{signature[:-8]}AAAAAAAA")
    other = token(sub=str(uuid.uuid4())).split(".")[1]
    refused(f"{head}.{other}.{signature}")


def test_an_expired_token_is_refused() -> None:
    now = int(time.time())
    assert "expired" in refused(token(exp=now - 1))
    assert "expired" in refused(token(exp=now))


def test_a_token_that_was_verified_once_still_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    made = token()
    check = verifier()
    check.principal(made)
    now = time.time()
    monkeypatch.setattr("libs.common.identity.time.time", lambda: now + 61)
    assert "expired" in refused(made, check)


@pytest.mark.parametrize("iat", [int(time.time()) + 3600, 0])
def test_an_implausible_time_of_issue_is_refused(iat: int) -> None:
    assert "time of issue" in refused(token(iat=iat))


def test_a_token_for_another_audience_is_refused() -> None:
    assert "something else" in refused(token(aud="search"))
    assert "something else" in refused(signer().principal_token(WHO, "search"))


def test_types_of_tokens_are_not_interchangeable() -> None:
    realtime, _end = signer().realtime_token(WHO)
    assert "something else" in refused(realtime, verifier("notifier"))
    with pytest.raises(Problem, match="something else"):
        verifier("notifier").realtime(signer().principal_token(WHO, "notifier"))
    refused(token(header={"typ": "JWT"}))
    refused(token(header={"typ": REALTIME_TYPE}))


def test_a_realtime_token_names_its_principal_and_its_end() -> None:
    made, end = signer().realtime_token(WHO)
    assert verifier("notifier").realtime(made) == (WHO, end)
    assert abs(end - time.time() - 600) < 30


def test_only_the_gateway_makes_realtime_tokens() -> None:
    made, _end = signer("search").realtime_token(WHO)
    with pytest.raises(Problem, match="issuer"):
        verifier("notifier").realtime(made)


def test_the_algorithm_is_not_the_tokens_choice() -> None:
    head = {"typ": INTERNAL_TYPE, "kid": "gateway"}
    claims = token().split(".")[1]
    refused(f"{_part(head | {'alg': 'none'})}.{claims}.")
    public = KEYS["gateway"].public_key
    for secret in (
        public.public_bytes(Encoding.Raw, PublicFormat.Raw),
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        msgspec.json.encode(KEYS["gateway"].as_dict(private=False)),
    ):
        signed = f"{_part(head | {'alg': 'HS256'})}.{claims}"
        signature = base64.urlsafe_b64encode(hmac.digest(secret, signed.encode(), "sha256")).decode().rstrip("=")
        refused(f"{signed}.{signature}")


def _part(header: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(header)).decode().rstrip("=")


def test_a_key_that_stands_in_the_token_itself_is_not_used() -> None:
    own = key("gateway")
    refused(token(signed_by=own, header={"jwk": own.as_dict(private=False)}))


@pytest.mark.parametrize("text", [None, "", "x", "a.b.c", "..", "e30.e30.", "\ud800", "é.é.é"])
def test_what_is_no_token_is_refused(text: str | None) -> None:
    refused(text)


@given(st.text(alphabet=st.sampled_from('eyJhbGci.=-_09{}"\xe9')))
def test_no_text_makes_the_verifier_fail_otherwise(text: str) -> None:
    refused(text)


@pytest.mark.parametrize("jwk", [{"kty": "oct", "k": "AA", "kid": "x"}, KEYS["search"].as_dict(private=False), {}])
def test_a_signer_needs_a_private_key_with_a_name(jwk: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="private Ed25519 JWK"):
        Signer(msgspec.json.encode(jwk).decode())


@pytest.mark.parametrize("jwks", ["", "[]", "{}", '{"keys": 1}', '{"keys": [{"kty": "OKP"}]}'])
def test_a_verifier_needs_a_key_set(jwks: str) -> None:
    with pytest.raises(ValueError, match="JWKS"):
        Verifier(jwks, audience="tickets")

"""Tokens that must not pass, as the front door sees them; none of them causes a call to anybody."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from carebus_common.testing.tokens import Issuer

Forgery = Callable[[Issuer], str]


def segment(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned(algorithm: str) -> Forgery:
    return lambda issuer: ".".join([*head_and_claims(issuer, algorithm), ""])


def head_and_claims(issuer: Issuer, algorithm: str) -> list[str]:
    header = {"alg": algorithm, "typ": "at+jwt", "kid": issuer.key_id}
    return [segment(header), segment(issuer.claims("org-a", ["admin"]))]


def with_public_key_as_secret(issuer: Issuer) -> str:
    """HS256 with the public key, which everybody knows; made by hand, since PyJWT refuses to."""
    public = issuer.private_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = ".".join(head_and_claims(issuer, "HS256"))
    mac = hmac.digest(public, signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def with_claims(**changed: Any) -> Forgery:
    return lambda issuer: issuer.sign({**issuer.claims("org-a", ["admin"]), **changed})


def without(claim: str) -> Forgery:
    return lambda issuer: issuer.sign(
        {name: value for name, value in issuer.claims("org-a", ["admin"]).items() if name != claim}
    )


def with_header(**changed: Any) -> Forgery:
    return lambda issuer: issuer.sign(issuer.claims("org-a", ["admin"]), changed)


def in_json_form(issuer: Issuer) -> str:
    protected, payload, signature = issuer.token("org-a", ["admin"]).split(".")
    return json.dumps({"payload": payload, "signatures": [{"protected": protected, "signature": signature}]})


FORGERIES: dict[str, Forgery] = {
    "alg none": unsigned("none"),
    "alg noNE": unsigned("noNE"),
    "HS256 with the public key": with_public_key_as_secret,
    "another aud": with_claims(aud="other"),
    "another iss": with_claims(iss="other"),
    "another typ": with_header(typ="id_token"),
    "no exp": without("exp"),
    "expired": with_claims(exp=int(time.time()) - 3600),
    "not yet valid": with_claims(nbf=int(time.time()) + 3600),
    "no organization": without("organizationId"),
    "an organization that is a path": with_claims(organizationId="../b"),
    "an organization that is an operator": with_claims(organizationId={"$ne": None}),
    "roles that are no list": with_claims(roles="admin"),
    "unknown crit": with_header(crit=["x"], x=1),
    "jku": with_header(jku="http://127.0.0.1:1/jwks.json"),
    "jwk": with_header(jwk={"kty": "EC"}),
    "a key nobody knows": lambda issuer: Issuer().token("org-a", ["admin"]),
    "another's signature": lambda issuer: (
        issuer.token("org-a").rpartition(".")[0] + "." + issuer.token("org-b").rpartition(".")[2]
    ),
    "four segments": lambda issuer: issuer.token("org-a", ["admin"]) + ".e30",
    "JSON form": in_json_form,
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES.keys())
async def test_a_forged_token_is_refused_at_the_door(front: Any, forgery: Forgery) -> None:
    headers = {"Authorization": f"Bearer {forgery(front.issuer)}"}

    for request in (("GET", "/patients/p"), ("POST", "/events")):
        answer = await front.http.request(*request, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert not front.claims.connections + front.ingest.connections + front.processor.connections


async def test_a_good_token_passes(front: Any) -> None:
    assert (await front.get("/patients/p")).status_code == 200

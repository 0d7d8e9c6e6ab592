"""Tokens for tests and development: a key of one's own, its JWKS document, and any token signed with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

__all__ = ["Issuer"]


class Issuer:
    """Signs tokens with a fresh ES256 (default) or RS256 key, as an identity provider would."""

    def __init__(
        self, *, algorithm: str = "ES256", issuer: str = "carebus", audience: str = "carebus", rsa_bits: int = 2048
    ) -> None:
        self.algorithm = algorithm
        self.key_id = uuid4().hex
        self.issuer = issuer
        self.audience = audience
        self.private_key: Any = (
            ec.generate_private_key(ec.SECP256R1())
            if algorithm == "ES256"
            else rsa.generate_private_key(public_exponent=65537, key_size=rsa_bits)
        )

    def jwk(self) -> dict[str, Any]:
        """The public key as a JWK."""
        convert: Any = ECAlgorithm.to_jwk if self.algorithm == "ES256" else RSAAlgorithm.to_jwk
        public = json.loads(convert(self.private_key.public_key()))
        public.pop("key_ops", None)
        return {**public, "kid": self.key_id, "use": "sig", "alg": self.algorithm}

    def write_jwks(self, path: Path, *others: Issuer) -> Path:
        """Write the JWKS document with this key, and those of `others`, to `path`."""
        path.write_text(json.dumps({"keys": [self.jwk(), *(other.jwk() for other in others)]}))
        return path

    def claims(
        self,
        organization_id: str = "org-a",
        roles: Iterable[str] = ("event-sender",),
        *,
        lifetime: float = 600,
        **more: Any,
    ) -> dict[str, Any]:
        """Valid claims, `lifetime` in seconds; keyword arguments add to them or replace them."""
        now = time.time()
        return {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": "tester",
            "iat": int(now),
            "exp": int(now + lifetime),
            "organizationId": organization_id,
            "roles": list(roles),
            **more,
        }

    def sign(self, claims: Mapping[str, Any], headers: Mapping[str, Any] | None = None) -> str:
        """A token with these claims; `headers` add to or replace `typ: at+jwt` and the key's `kid`."""
        return jwt.encode(
            dict(claims),
            self.private_key,
            algorithm=self.algorithm,
            headers={"typ": "at+jwt", "kid": self.key_id, **(headers or {})},
        )

    def token(self, organization_id: str = "org-a", roles: Iterable[str] = ("event-sender",), **more: Any) -> str:
        """A valid token."""
        return self.sign(self.claims(organization_id, roles, **more))

    def bearer(self, organization_id: str = "org-a", roles: Iterable[str] = ("event-sender",), **more: Any) -> str:
        """A valid `Authorization` header."""
        return f"Bearer {self.token(organization_id, roles, **more)}"

"""The keys that sign tokens: a JWKS document from a file or an http(s) URL, never from a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

__all__ = ["Algorithm", "KeySource", "SigningKey", "key_source"]

Algorithm: TypeAlias = Literal["RS256", "ES256"]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key and the only algorithm it verifies."""

    key_id: str
    algorithm: Algorithm
    public_key: RSAPublicKey | EllipticCurvePublicKey


class KeySource(Protocol):
    """Where a verifier finds keys. `generation` changes whenever the set of keys did."""

    @property
    def generation(self) -> int: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def find(self, key_id: str, algorithm: str) -> SigningKey | None:
        """The key, or None if there is no such key. Raises Unavailable if no keys were ever loaded."""


def key_source(jwks: str) -> KeySource:
    """A source for `TokenSettings.jwks`: a file path or an http(s) URL."""
    raise NotImplementedError

"""The development key: an ES256 key in the state directory, and the tokens made with it.

Services are given `jwks.json`, which holds the public half. Production has an identity provider instead.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

__all__ = ["DEFAULT_TTL", "ensure_key", "ensure_secret", "jwks_path", "mint"]

DEFAULT_TTL = timedelta(hours=12)


def jwks_path(state_dir: Path) -> Path:
    """Where the public key is; there after `ensure_key`."""
    return state_dir / "keys" / "jwks.json"


def _key_path(state_dir: Path) -> Path:
    return state_dir / "keys" / "development.pem"


def ensure_key(state_dir: Path) -> Path:
    """Make the key if there is none; returns the path of `jwks.json`."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    path = _key_path(state_dir)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(pem)
        try:
            # Two that come at once agree on the key of the first: unlike a rename, a link replaces nothing.
            os.link(scratch, path)
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
    jwks = jwks_path(state_dir)
    scratch = jwks.with_name(f"{jwks.name}.{os.getpid()}")
    scratch.write_text(json.dumps({"keys": [_public_jwk(path)]}, indent=2) + "\n")
    scratch.replace(jwks)
    return jwks


def ensure_secret(state_dir: Path, name: str) -> str:
    """The secret of that name, such as `audit-key`; made if there is none. All services get the same."""
    path = state_dir / "keys" / name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(24))
    try:
        os.link(scratch, path)
    except FileExistsError:
        pass
    finally:
        scratch.unlink()
    return path.read_text()


def mint(
    state_dir: Path,
    organization_id: str,
    roles: Iterable[str],
    *,
    subject: str = "developer",
    patient_id: str | None = None,
    ttl: timedelta = DEFAULT_TTL,
) -> str:
    """An access token (RFC 9068) that the services of this state directory accept.

    Raises FileNotFoundError if no key was made there, ValueError for an organization or role no service accepts.
    """
    import jwt  # noqa: PLC0415

    from carebus_common.auth import ORGANIZATION_ID, ROLES  # noqa: PLC0415
    from carebus_common.settings import TokenSettings  # noqa: PLC0415

    granted = sorted(set(roles))
    if unknown := [role for role in granted if role not in ROLES]:
        raise ValueError(f"unknown role {', '.join(unknown)}; there are {', '.join(sorted(ROLES))}")
    if not ORGANIZATION_ID.fullmatch(organization_id):
        raise ValueError(f"{organization_id!r} is no organization id: it must match {ORGANIZATION_ID.pattern}")
    settings = TokenSettings(jwks=str(jwks_path(state_dir)))
    now = datetime.now(UTC)
    claims = {
        "iss": settings.token_issuer,
        "aud": settings.token_audience,
        "sub": subject,
        "organizationId": organization_id,
        "roles": granted,
        "iat": now,
        "exp": now + ttl,
        "jti": secrets.token_urlsafe(12),
    }
    if patient_id is not None:
        claims["patientId"] = patient_id
    path = _key_path(state_dir)
    headers = {"typ": "at+jwt", "kid": _public_jwk(path)["kid"]}
    return jwt.encode(claims, path.read_bytes(), algorithm="ES256", headers=headers)


def _public_jwk(path: Path) -> dict[str, str]:
    """The key's public half, named by its thumbprint (RFC 7638)."""
    import hashlib  # noqa: PLC0415
    from base64 import urlsafe_b64encode  # noqa: PLC0415

    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    key = load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} holds no elliptic-curve key; remove it and a new one is made")  # noqa: TRY004
    numbers = key.public_key().public_numbers()

    def coordinate(value: int) -> str:
        return urlsafe_b64encode(value.to_bytes(32)).decode().rstrip("=")

    required = {"crv": "P-256", "kty": "EC", "x": coordinate(numbers.x), "y": coordinate(numbers.y)}
    canonical = json.dumps(required, sort_keys=True, separators=(",", ":")).encode()
    thumbprint = urlsafe_b64encode(hashlib.sha256(canonical).digest()).decode().rstrip("=")
    return {**required, "use": "sig", "alg": "ES256", "kid": thumbprint}

"""Who calls: a bearer token, verified, as a `Caller`.

A token is a JWS in compact form (RFC 7515) with RS256 or ES256, whose key comes from the configured key set and
whose algorithm comes from that key. It needs a `typ` of `TokenSettings.token_types`, the configured `iss` and
`aud`, `exp`, `sub`, `organizationId` and `roles`. Everything else is refused with the same 401: which check
failed is of use to attackers only.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, Final

import jwt
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from starlette.requests import Request

from carebus_common.errors import Forbidden, Unauthenticated
from carebus_common.jwks import KeySource
from carebus_common.settings import TokenSettings

__all__ = ["ROLES", "Caller", "TokenVerifier", "current_caller", "require_role"]

ROLES: Final = frozenset({"admin", "processor", "provider", "patient", "event-sender", "operator", "operator-phi"})
ORGANIZATION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)", re.IGNORECASE)
# Each would let the token bring or name its own key, or change what is signed.
_FORBIDDEN_HEADERS: Final = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc"})
# A token with every claim and dozens of roles stays below 2 KiB.
_MAX_TOKEN: Final = 8 * 1024
_CACHE_SIZE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, from a verified token and nothing else. `roles` holds known roles only."""

    organization_id: str
    subject: str
    roles: frozenset[str]
    patient_id: str | None
    expires_at: datetime


class TokenVerifier:
    """Verifies bearer tokens; a token that was verified is remembered, by its hash, until it expires."""

    def __init__(self, keys: KeySource, settings: TokenSettings) -> None:
        self._keys = keys
        self._issuer = settings.token_issuer
        self._audience = settings.token_audience
        self._types = frozenset(name.lower() for name in settings.token_types)
        self._leeway = settings.token_leeway
        self._grace = settings.token_leeway.total_seconds()
        self._verified: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        self._generation = keys.generation

    async def verify(self, authorization: str | None) -> Caller:
        """The caller of an `Authorization` header.

        Raises Unauthenticated, and Unavailable if no keys were ever loaded. Makes no request the token could steer.
        """
        if authorization is None or len(authorization) > _MAX_TOKEN:
            raise _refused()
        generation = self._keys.generation
        if generation != self._generation:
            self._verified.clear()
            self._generation = generation
        digest = sha256(authorization.encode("utf-8", "surrogatepass")).digest()
        known = self._verified.get(digest)
        if known is not None:
            if time.time() < known[0]:
                return known[1]
            del self._verified[digest]
            raise _refused()
        caller = await self._verify(authorization)
        # The newest push out the oldest, not the least used: touching an entry would cost every hit, and one that
        # is pushed out is only verified again.
        if self._keys.generation == self._generation:
            self._verified[digest] = (caller.expires_at.timestamp() + self._grace, caller)
        if len(self._verified) > _CACHE_SIZE:
            self._verified.popitem(last=False)
        return caller

    async def _verify(self, authorization: str) -> Caller:
        match = _BEARER.fullmatch(authorization.strip(" "))
        if match is None:
            raise _refused()
        key_id, algorithm = self._checked_header(match[1])
        key = await self._keys.find(key_id, algorithm)
        if key is None:
            raise _refused()
        try:
            claims = jwt.decode(
                ".".join(match.groups()),
                key.public_key,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            return _caller(claims)
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, OSError, RecursionError):
            raise _refused() from None

    def _checked_header(self, segment: str) -> tuple[str, str]:
        """The key id and algorithm the token names; they only choose among the keys we trust."""
        try:
            decoded = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)).decode()
            header = json.loads(decoded, object_pairs_hook=_without_repeats)
        except (ValueError, binascii.Error, RecursionError):
            raise _refused() from None
        if not isinstance(header, dict) or not _FORBIDDEN_HEADERS.isdisjoint(header):
            raise _refused()
        key_id, algorithm, kind = header.get("kid"), header.get("alg"), header.get("typ")
        if not (isinstance(key_id, str) and isinstance(algorithm, str) and isinstance(kind, str)):
            raise _refused()
        # RFC 7515, 4.1.9: a media type may come without its `application/`, and case does not matter.
        if kind.lower().removeprefix("application/") not in self._types or algorithm not in ("RS256", "ES256"):
            raise _refused()
        return key_id, algorithm


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("repeated name")
    return values


def _caller(claims: dict[str, Any]) -> Caller:
    organization_id, subject, roles = claims.get("organizationId"), claims["sub"], claims.get("roles")
    patient_id = claims.get("patientId")
    if not (isinstance(organization_id, str) and ORGANIZATION_ID.fullmatch(organization_id)):
        raise ValueError("organizationId")
    if not (isinstance(subject, str) and 0 < len(subject) <= 256):
        raise ValueError("sub")
    if not (isinstance(roles, list) and all(isinstance(role, str) for role in roles)):
        raise ValueError("roles")
    if not (patient_id is None or (isinstance(patient_id, str) and 0 < len(patient_id) <= 128)):
        raise ValueError("patientId")
    return Caller(
        organization_id=organization_id,
        subject=subject,
        roles=ROLES.intersection(roles),
        patient_id=patient_id,
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
    )


def _refused() -> Unauthenticated:
    return Unauthenticated("A valid bearer token is needed.")


def require_role(caller: Caller, *roles: str) -> None:
    """Raises Forbidden unless the caller has one of `roles`."""
    if caller.roles.isdisjoint(roles):
        raise Forbidden("The token lacks the role this needs.")


_bearer = HTTPBearer(scheme_name="bearer", bearerFormat="JWT", auto_error=False)


async def current_caller(
    request: Request,
    scopes: SecurityScopes,
    _documented: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
) -> Caller:
    """The caller, verified by `app.state.verifier`: `Annotated[Caller, Security(current_caller, scopes=["admin"])]`.

    `scopes` are roles of which one suffices (none given: any caller); the OpenAPI document shows them.
    Raises Unauthenticated, Forbidden, Unavailable.
    """
    verifier: TokenVerifier = request.app.state.verifier
    values = request.headers.getlist("authorization")
    caller = await verifier.verify(values[0] if len(values) == 1 else None)
    if scopes.scopes:
        require_role(caller, *scopes.scopes)
    return caller

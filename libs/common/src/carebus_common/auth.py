"""Who calls: a verified token as a `Caller`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from starlette.requests import Request

from carebus_common.errors import Forbidden
from carebus_common.jwks import KeySource
from carebus_common.settings import TokenSettings

__all__ = ["ROLES", "Caller", "TokenVerifier", "current_caller", "require_role"]

ROLES = frozenset({"admin", "processor", "provider", "patient", "event-sender", "operator", "operator-phi"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, from a verified token and nothing else."""

    organization_id: str
    subject: str
    roles: frozenset[str]
    patient_id: str | None
    expires_at: datetime


class TokenVerifier:
    """Verifies bearer tokens against the keys of one issuer."""

    def __init__(self, keys: KeySource, settings: TokenSettings) -> None:
        self._keys = keys
        self._settings = settings

    async def verify(self, authorization: str | None) -> Caller:
        """The caller of an `Authorization` header. Raises Unauthenticated; Unavailable if no keys were ever loaded."""
        raise NotImplementedError


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

    `scopes` are roles of which one suffices (none given: any caller); they show in the OpenAPI document.
    Raises Unauthenticated, Forbidden.
    """
    verifier: TokenVerifier = request.app.state.verifier
    values = request.headers.getlist("authorization")
    caller = await verifier.verify(values[0] if len(values) == 1 else None)
    if scopes.scopes:
        require_role(caller, *scopes.scopes)
    return caller

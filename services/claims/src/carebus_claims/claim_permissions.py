"""Who does what with claims: the one table that routes, README and tests go by.

A role that a route does not list gets 403 there. What a caller may not see of another organization, or of a claim that
is not its own, answers 404, as if it did not exist. A token with several roles sees what any of them sees; a list shows
it what its first role in the order admin, processor, provider, patient sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from carebus_claims.claim import Claim
from carebus_claims.claim_queries import Scope
from carebus_common.auth import Caller
from carebus_common.errors import Forbidden

__all__ = ["CLAIM_PERMISSIONS", "Reach", "claim_roles", "may_see", "scope_of"]


class Reach(Enum):
    """Which claims of its organization a role reaches; the value is for readers."""

    ALL = "every claim"
    ASSIGNED = "claims assigned to it"
    PROVIDED = "claims of which it is the provider"
    OWN = "claims of its own patient"


_ADMIN: Final = {"admin": Reach.ALL}
_STAFF: Final = {**_ADMIN, "processor": Reach.ASSIGNED}
_READERS: Final = {**_STAFF, "provider": Reach.PROVIDED, "patient": Reach.OWN}

CLAIM_PERMISSIONS: Final[Mapping[str, Mapping[str, Reach]]] = {
    "POST /claims": _ADMIN,
    "GET /claims": _READERS,
    "GET /claims/{claimId}": _READERS,
    "PATCH /claims/{claimId}": _STAFF,
    "POST /claims/{claimId}/status": _STAFF,
    "POST /claims/{claimId}/assign": _ADMIN,
    "POST /claims/{claimId}/payment": _ADMIN,
    "GET /claims/{claimId}/audit": _STAFF,
    "POST /claims/bulk": _ADMIN,
    "PATCH /claims/bulk": _STAFF,
    "GET /claims/dashboard": _STAFF,
    "GET /claims/export": _READERS,
    "GET /claims/changes": _READERS,
}
_ORDER: Final = ("admin", "processor", "provider", "patient")


def claim_roles(route: str) -> list[str]:
    """The roles that a route admits, in a stable order."""
    return sorted(CLAIM_PERMISSIONS[route])


def scope_of(route: str, caller: Caller) -> Scope:
    """What of a list the caller sees. Raises Forbidden if no role of the caller is listed for the route."""
    return _scopes(route, caller)[0]


def may_see(route: str, caller: Caller, claim: Claim) -> bool:
    """Whether the route may show or change this claim. Raises Forbidden as `scope_of` does."""
    mine = claim.organization_id == caller.organization_id
    return any(scope.admits(claim) for scope in _scopes(route, caller)) and mine


def _scopes(route: str, caller: Caller) -> list[Scope]:
    granted = CLAIM_PERMISSIONS[route]
    scopes = {
        Reach.ALL: Scope(),
        Reach.ASSIGNED: Scope("assignedProcessorId", caller.subject),
        Reach.PROVIDED: Scope("providerId", caller.subject),
        Reach.OWN: Scope("patientId", caller.patient_id),
    }
    found = [scopes[granted[role]] for role in _ORDER if role in granted and role in caller.roles]
    if not found:
        raise Forbidden("The token lacks the role this needs.")
    return found

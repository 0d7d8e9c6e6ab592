"""Who reads what: the one table that routes, README and tests go by.

A role that a route does not list gets 403 there. A token with several roles sees what any of them sees. What a
caller may not see of another patient or another organization answers 404, as if it did not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from carebus_common.auth import Caller
from carebus_common.errors import Forbidden, NotFound

__all__ = ["PERMISSIONS", "Sees", "nothing_here", "roles_of", "sight"]


class Sees(Enum):
    """What a role sees of what a route serves, always within its organization; the value is for readers."""

    ALL = "every patient's"
    OWN = "its own patient's"
    STATUS = "the status, without data"


_STAFF: Final = {"admin": Sees.ALL, "processor": Sees.ALL, "provider": Sees.ALL}

PERMISSIONS: Final[Mapping[str, Mapping[str, Sees]]] = {
    "GET /patients": {**_STAFF, "patient": Sees.OWN},
    "GET /patients/{patientId}": {**_STAFF, "patient": Sees.OWN},
    "GET /patients/{patientId}/history": {**_STAFF, "patient": Sees.OWN},
    "GET /events/{eventId}": {**_STAFF, "patient": Sees.OWN, "event-sender": Sees.STATUS},
}


def roles_of(route: str) -> list[str]:
    """The roles that a route admits, in a stable order."""
    return sorted(PERMISSIONS[route])


def sight(route: str, caller: Caller, patient_id: str) -> Sees:
    """How much the caller sees of this patient, once the row's organization is known to be the caller's.

    Returns `Sees.ALL` or `Sees.STATUS`. Raises Forbidden if no role of the caller is listed for the route,
    NotFound if the patient is not the caller's own.
    """
    granted = {sees for role, sees in PERMISSIONS[route].items() if role in caller.roles}
    if not granted:
        raise Forbidden("The token lacks the role this needs.")
    if Sees.ALL in granted or (Sees.OWN in granted and caller.patient_id == patient_id):
        return Sees.ALL
    if Sees.STATUS in granted:
        return Sees.STATUS
    raise nothing_here()


def nothing_here() -> NotFound:
    """The one answer for what does not exist and for what the caller may not know to exist."""
    return NotFound("There is nothing here.")

"""What an operator sees and may do, from the token and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from carebus_common.auth import Caller
from carebus_common.errors import Forbidden, NotFound

__all__ = ["OPERATOR", "OPERATOR_PHI", "Scope", "nothing_here"]

OPERATOR: Final = "operator"
OPERATOR_PHI: Final = "operator-phi"


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose dead letters a query may meet. `organization_id` None: everybody's, for the operations organization.

    Every query of the ops API takes one; there is no other way to reach the collections.
    """

    actor: str
    actor_organization_id: str
    roles: tuple[str, ...]
    organization_id: str | None
    reveals: bool

    @classmethod
    def of(cls, caller: Caller, operations_organization: str) -> Scope:
        everything = caller.organization_id == operations_organization
        return cls(
            actor=caller.subject,
            actor_organization_id=caller.organization_id,
            roles=tuple(sorted(caller.roles)),
            organization_id=None if everything else caller.organization_id,
            reveals=OPERATOR_PHI in caller.roles,
        )

    def only(self, query: dict[str, Any]) -> dict[str, Any]:
        """The query, narrowed to what may be seen. Raises NotFound if it names another organization."""
        if self.organization_id is None:
            return query
        if query.get("organizationId", self.organization_id) != self.organization_id:
            raise nothing_here()
        return {**query, "organizationId": self.organization_id}

    def require_operations(self) -> None:
        """Raises Forbidden unless the caller belongs to the operations organization."""
        if self.organization_id is not None:
            raise Forbidden("This is for the operations organization.")


def nothing_here() -> NotFound:
    """The one answer for what does not exist and for what the caller may not know to exist."""
    return NotFound("There is nothing here.")

"""What the routes share: the service they are about, and who asks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Protocol

from fastapi import Depends, Path, Security
from starlette.requests import Request

from carebus_common.auth import Caller, current_caller
from carebus_common.consumer.change import PatientEvent
from carebus_common.http.cursor import CursorCodec
from carebus_common.http.guards import request_id_of
from carebus_common.mongo import Database, in_time
from carebus_common.ops.audit import Audit
from carebus_common.ops.dead_letters import DeadLetters
from carebus_common.ops.lag import Lag
from carebus_common.ops.models import LETTER_ID
from carebus_common.ops.purges import Purges
from carebus_common.ops.scope import OPERATOR, OPERATOR_PHI, Scope

__all__ = ["LetterIdInPath", "Operations", "Operator", "OperatorPhi", "Replica", "ReplicaStatus", "RequestId"]


def _request_id(request: Request) -> str:
    return request_id_of(request.scope)


Operator = Annotated[Caller, Security(current_caller, scopes=[OPERATOR, OPERATOR_PHI])]
OperatorPhi = Annotated[Caller, Security(current_caller, scopes=[OPERATOR_PHI])]
RequestId = Annotated[str, Depends(_request_id)]
LetterIdInPath = Annotated[str, Path(pattern=LETTER_ID)]


class ReplicaStatus(Protocol):
    """What this process does, in counts: `carebus_common.consumer.Status` has more."""

    @property
    def partitions(self) -> tuple[int, ...]: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def store_away(self) -> bool: ...
    @property
    def broker_away(self) -> bool: ...


class Replica(Protocol):
    """The consumer that runs in this process: an `OrderedConsumer`."""

    def status(self) -> ReplicaStatus: ...


@dataclass(frozen=True, slots=True)
class Operations:
    """One service's consumer and what it leaves behind, for the routes; holds no connection of its own."""

    service: str
    group: str
    topic: str
    topics: frozenset[str]
    decode: Callable[[bytes], PatientEvent]
    replica: Replica
    redrive_cap: int
    organization: str
    bootstrap: str
    timeout: timedelta
    database: Database
    cursors: CursorCodec
    audit: Audit
    letters: DeadLetters
    purges: Purges
    lag: Lag

    def scope(self, caller: Caller) -> Scope:
        return Scope.of(caller, self.organization)

    def in_time(self) -> AbstractContextManager[None]:
        """Around every use of the store: Unavailable if it does not answer in time."""
        return in_time(self.timeout)

    def read_cursor(self, cursor: str | None, caller: Caller, query: dict[str, Any]) -> list[Any] | None:
        """Raises NotFound, InvalidRequest as `CursorCodec.decode` does."""
        if cursor is None:
            return None
        bound = {"service": self.service, **query}
        return self.cursors.decode(cursor, organization_id=caller.organization_id, query=bound)

    def write_cursor(self, position: list[Any], caller: Caller, query: dict[str, Any]) -> str:
        bound = {"service": self.service, **query}
        return self.cursors.encode(position, organization_id=caller.organization_id, query=bound)

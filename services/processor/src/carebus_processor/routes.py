"""The processor's HTTP side: where an event is, and health."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from aiokafka.errors import KafkaError
from fastapi import APIRouter, Query, Security
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pymongo.errors import PyMongoError

from carebus_common.auth import Caller, current_caller
from carebus_common.errors import NotFound, Unavailable
from carebus_common.http import Data
from carebus_common.http.query import QueryModel
from carebus_processor.settings import RETRY_AFTER
from carebus_processor.status import EventStatus

__all__ = ["event_routes"]

READERS = ["admin", "processor", "provider", "event-sender"]


class ReceiptQuery(QueryModel):
    """The event's place in the log, as its status URL carries it."""

    partition: int | None = Field(default=None, ge=0, le=2**31 - 1)
    offset: int | None = Field(default=None, ge=0, le=2**63 - 1)


class StatusView(BaseModel):
    """Where an event is. `accepted`: the broker has it, and the processor has not come to it yet; `parked`: it waits
    until an earlier one of its patient is applied; `dead-lettered`: it could not be applied and waits for a person;
    `discarded`: a person decided that it never takes effect.
    """

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)

    event_id: UUID
    status: Literal["accepted", "parked", "processed", "dead-lettered", "discarded"]
    type: str | None = None
    ts: datetime | None = None
    received_at: datetime | None = None
    processed_at: datetime | None = None
    late: bool | None = None


def event_routes(status: EventStatus) -> APIRouter:
    router = APIRouter()

    @router.get("/events/{event_id}", summary="Where an event is")
    async def get_event_status(
        event_id: UUID,
        receipt: Annotated[ReceiptQuery, Query()],
        caller: Annotated[Caller, Security(current_caller, scopes=READERS)],
    ) -> Data[StatusView]:
        """Known from the event's row, else from its receipt; 404 if neither knows it, or it is another tenant's."""
        try:
            found = await status.find(caller.organization_id, event_id, receipt.partition, receipt.offset)
        except (PyMongoError, KafkaError):
            raise Unavailable("The status cannot be read right now.", retry_after=RETRY_AFTER) from None
        if found is None:
            raise NotFound("There is no such event.")
        return Data(data=StatusView.model_validate(found))

    return router

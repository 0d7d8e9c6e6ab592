"""`POST /events` and `POST /events/batch` as the OpenAPI document shows them; `routes` serves them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NoReturn
from uuid import UUID

from fastapi import APIRouter, Body, Header, Security
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from carebus_common.auth import Caller, current_caller
from carebus_common.contracts.event import SubmittedEvent
from carebus_common.http import Data
from carebus_common.http.envelopes import Error, Problem
from carebus_common.http.idempotency_key import KEY_PATTERN

__all__ = ["described_routes"]

_RETRY_AFTER: dict[str, Any] = {
    "Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer"}}
}
_LOCATION: dict[str, Any] = {
    "Location": {"description": "The status URL.", "required": True, "schema": {"type": "string"}}
}
_REPLAYED: dict[str, Any] = {
    "Idempotency-Replayed": {"description": "`true` on a repetition.", "schema": {"type": "string"}}
}
_LIMITS: dict[str, Any] = {
    name: {"description": meaning, "required": True, "schema": {"type": "string"}}
    for name, meaning in {
        "RateLimit-Limit": "What may be sent within a minute: events or bytes.",
        "RateLimit-Remaining": "What is left of it.",
        "RateLimit-Reset": "Seconds until it is renewed.",
        "RateLimit-Policy": "Both limits, with their window in seconds.",
    }.items()
}


class _View(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, extra="forbid")


class ReceiptView(_View):
    """Where the broker has the event."""

    event_id: UUID
    status: Literal["accepted"]
    partition: int
    offset: int
    status_url: str


class AcceptedItem(ReceiptView):
    """An item that the broker has acknowledged."""

    index: int = Field(description="The item's place in the batch, from 0.")


class ItemError(_View):
    code: str
    message: str
    details: list[Problem]


class RejectedItem(_View):
    """An item that was not accepted; `unavailable` and `rate-limited` ones may be sent again."""

    index: int
    status: Literal["rejected"]
    error: ItemError


Items = Annotated[AcceptedItem | RejectedItem, Field(discriminator="status")]
Sender = Annotated[Caller, Security(current_caller, scopes=["event-sender"])]

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "No strict JSON, or fields that break a rule: all of them are named."},
    403: {"model": Error, "description": "Not an event-sender."},
    429: {"model": Error, "description": "Over the rate limit.", "headers": {**_RETRY_AFTER, **_LIMITS}},
    503: {
        "model": Error,
        "description": "The broker does not acknowledge. The details hold the eventIds to repeat with.",
        "headers": _RETRY_AFTER,
    },
}
_LINES = {"schema": {"type": "string", "description": "An event a line."}}


def described_routes() -> APIRouter:
    """Routes that are never called, as `EventRoutes` stands in front of them."""
    router = APIRouter()

    @router.post(
        "/events",
        status_code=202,
        summary="Accept an event",
        responses={
            202: {"description": "The broker has the event.", "headers": {**_LOCATION, **_REPLAYED}},
            **_REFUSALS,
            422: {"model": Error, "description": "The Idempotency-Key was used for another body."},
        },
    )
    async def post_event(
        event: Annotated[SubmittedEvent, Body()],
        sender: Sender,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1,
                max_length=255,
                pattern=KEY_PATTERN,
                description="Makes the eventId, and replays the receipt for a day.",
            ),
        ] = None,
    ) -> Data[ReceiptView]:
        """202 once the broker has acknowledged the event; before that nothing, and after that it is not lost."""
        _unreachable()

    @router.post(
        "/events/batch",
        status_code=202,
        summary="Accept many events",
        responses={
            202: {"description": "The broker has all events."},
            207: {
                "model": Data[list[Items]],
                "description": "Some were rejected. `Retry-After` is there if repeating those may help.",
                "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
            },
            **_REFUSALS,
        },
        openapi_extra={
            "requestBody": {
                "content": {"application/x-ndjson": _LINES, "application/ndjson": _LINES, "application/jsonl": _LINES}
            }
        },
    )
    async def post_batch(
        events: Annotated[list[SubmittedEvent], Body(min_length=1, max_length=10_000)], sender: Sender
    ) -> Data[list[Items]]:
        """A JSON array or NDJSON: a result for each event, in order. A patient's events keep their order."""
        _unreachable()

    return router


def _unreachable() -> NoReturn:
    raise NotImplementedError("served by EventRoutes")

"""Posts many events in batches, several at once, and keeps each patient's order."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from carebus_cli.client import ApiError, ItemResult, Receipt, Refused
from carebus_cli.retry import RetryPolicy

__all__ = ["BatchClient", "GaveUp", "Outgoing", "Rejection", "Sending", "send_in_order"]

# Well under ingest's 10,000 events and 8 MiB: a batch is answered in a moment, and little is sent twice.
MAX_BATCH_EVENTS: Final = 500
MAX_BATCH_BYTES: Final = 1024 * 1024


class BatchClient(Protocol):
    """What sending needs of a `GatewayClient`."""

    async def send_batch(self, events: list[bytes]) -> list[ItemResult]: ...


class Outgoing(NamedTuple):
    """An event to post: where it stands in the input, whose it is, and its JSON, which carries its eventId."""

    place: int
    patient_id: str
    type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Rejection:
    """An event that was refused for good, by its place in the input."""

    place: int
    code: str
    message: str
    details: list[Any] = field(default_factory=list)


class GaveUp(Exception):
    """Some events were not accepted within the time for retries; those before them were."""


@dataclass(slots=True)
class Sending:
    """How far it has got: kept up to date while sending, and true also when that ends by an exception."""

    total: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    rejected: list[Rejection] = field(default_factory=list)
    receipts: dict[int, Receipt] = field(default_factory=dict)
    retried: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        return self.accepted.total() + len(self.rejected)


async def send_in_order(
    client: BatchClient,
    events: Iterable[Outgoing],
    sending: Sending,
    *,
    senders: int = 8,
    policy: RetryPolicy | None = None,
    keep_receipts: bool = False,
) -> None:
    """Post all events; returns once each is accepted or refused for good, recording it in `sending`.

    A patient belongs to one of the `senders`, and a sender posts its next batch only after the one before is
    acknowledged. An item that could not be taken for now is posted again before any later event of its patient.
    Raises GaveUp after no event was taken for as long as `policy` retries, ApiError if a whole request fails;
    the other senders stop too. `keep_receipts` stores the receipt of every event by its place.
    """
    queues: list[deque[Outgoing]] = [deque() for _ in range(senders)]
    for event in events:
        queues[zlib.crc32(event.patient_id.encode("utf-8", "surrogatepass")) % senders].append(event)
        sending.total += 1
    try:
        async with asyncio.TaskGroup() as group:
            for queue in queues:
                group.create_task(_send_queue(client, queue, sending, policy or RetryPolicy(), keep_receipts))
    except* (ApiError, GaveUp) as failures:
        raise _first(failures) from None


async def _send_queue(
    client: BatchClient, queue: deque[Outgoing], sending: Sending, policy: RetryPolicy, keep_receipts: bool
) -> None:
    attempt, stuck_since = 0, time.monotonic()
    while queue:
        batch = _take_batch(queue)
        results = await _send_batch(client, batch)
        waiting = _record(batch, results, sending, keep_receipts)
        # Put what must wait back to the front, in its order: nothing of its patient can pass it.
        queue.extendleft(reversed(waiting))
        if len(waiting) < len(batch):
            attempt, stuck_since = 0, time.monotonic()
        if waiting:
            attempt += 1
            sending.retried += len(waiting)
            retry_after = next((result.retry_after for result in results if result.retriable), None)
            seconds = policy.wait(attempt, time.monotonic() - stuck_since, retry_after)
            if seconds is None:
                raise GaveUp("The gateway could not take the events; try again later.")
            await asyncio.sleep(seconds)


async def _send_batch(client: BatchClient, batch: list[Outgoing]) -> list[ItemResult]:
    try:
        return await client.send_batch([event.body for event in batch])
    except Refused as refused:
        # Too large as a whole: halves may pass, and an event that is too large alone is its own rejection.
        if refused.status != 413:
            raise
        if len(batch) == 1:
            return [ItemResult(code=refused.code, message=refused.message, details=refused.details)]
        middle = len(batch) // 2
        return await _send_batch(client, batch[:middle]) + await _send_batch(client, batch[middle:])


def _take_batch(queue: deque[Outgoing]) -> list[Outgoing]:
    batch: list[Outgoing] = []
    size = 0
    while queue and len(batch) < MAX_BATCH_EVENTS and (not batch or size + len(queue[0].body) < MAX_BATCH_BYTES):
        size += len(queue[0].body) + 1
        batch.append(queue.popleft())
    return batch


def _record(batch: list[Outgoing], results: list[ItemResult], sending: Sending, keep_receipts: bool) -> list[Outgoing]:
    """Count what is settled; returns what must be posted again.

    Once one event of a patient must wait, later ones that were accepted all the same stay accepted: the gateway
    keeps a patient's order within a batch, so it refuses them too.
    """
    waiting: list[Outgoing] = []
    for event, result in zip(batch, results, strict=True):
        if result.receipt is not None:
            sending.accepted[event.type] += 1
            if keep_receipts:
                sending.receipts[event.place] = result.receipt
        elif result.retriable:
            waiting.append(event)
        else:
            sending.rejected.append(Rejection(event.place, result.code, result.message, result.details))
    return waiting


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    for failure in failures.exceptions:
        return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
    raise AssertionError("an exception group is never empty")

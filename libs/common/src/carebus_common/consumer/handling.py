"""One record: its handler is run, and its outcome put into words for the store and the topics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Generic, TypeVar

from carebus_common.consumer.change import Change, Delivery, PatientEvent
from carebus_common.consumer.errors import Crashed, DeadLetter, PauseConsumption, Undecodable
from carebus_common.consumer.failure import Failure, describe
from carebus_common.consumer.lanes import Handled, Lane, Letter, Record
from carebus_common.consumer.letters import Reason, Tries, letter_document, letter_id, letter_message
from carebus_common.consumer.plan import Fate, Plan, Settled, Slow
from carebus_common.consumer.recorder import Recorder
from carebus_common.consumer.records import Subscription
from carebus_common.consumer.rows import PatientRow, source_document
from carebus_common.consumer.store import InboxRow, message_document
from carebus_common.messages import Message

__all__ = ["Handling", "utc_now"]

E = TypeVar("E", bound=PatientEvent)


def utc_now() -> datetime:
    return datetime.now(UTC)


class Handling(Generic[E]):
    """`interrupted` tells how often an event took its process down, by its place ("topic-partition-offset")."""

    def __init__(
        self,
        subscription: Subscription[E],
        *,
        interrupted: Mapping[str, int],
        recorder: Recorder,
        clock: Callable[[], datetime],
    ) -> None:
        self.subscription = subscription
        self.clock = clock
        self._handler = subscription.handler
        self._interrupted = interrupted
        self._recorder = recorder

    def handle(self, plan: Plan[E], lane: Lane[E], record: Record[E], row: PatientRow) -> Handled[E] | None:
        """What becomes of the record; None when its handler takes its time (then it is in `plan.slow`)."""
        handled = lane.handled
        # It is kept until it is written: the write may be refused for what comes after it in the batch. A change made
        # from a row that has moved since is made again; that the store refused it stays as it is.
        if handled is not None and handled.record is record and (record.refused or handled.seen == row):
            return handled
        now = self.clock()
        if record.event is None:
            return Handled(record, row, record.problem or Undecodable("no event"), now, 0.0)
        position = record.position
        if self._interrupted and self._interrupted.get(letter_id(position), 0) >= self.subscription.crash_limit:
            return Handled(record, row, Crashed("its handler took the process down"), now, 0.0)
        started = perf_counter()
        result: Change | Exception
        recorder = self._recorder
        recorder.begin(position.partition, position.offset)
        try:
            answer = self._handler(row.state, Delivery(record.event, position, now, record.headers))
        except PauseConsumption:
            raise
        except Exception as error:
            result = error
        else:
            if not isinstance(answer, Change):
                plan.slow[lane] = Slow(record, row, answer, now)
                return None
            result = answer
        finally:
            recorder.end()
        return Handled(record, row, result, now, (perf_counter() - started) * 1000)

    @staticmethod
    def apply(plan: Plan[E], record: Record[E], change: Change, handled: Handled[E]) -> Settled[E]:
        assert record.event is not None
        document = _inbox_document(record, record.event, change, handled)
        plan.writes.inbox.append(document)
        plan.writes.effects += ((document, effect) for effect in change.effects)
        return Settled(record, Fate.PROCESSED, tuple(change.messages))

    def settle_known(self, plan: Plan[E], record: Record[E], before: InboxRow) -> Settled[E]:
        if before.position == record.position:
            return Settled(record, Fate.REDELIVERED, before.messages)
        if before.content_hash == record.content_hash:
            return Settled(record, Fate.DUPLICATE)
        return self.dead_letter_apart(plan, record, "conflict", Fate.CONFLICT)

    def dead_letter_apart(self, plan: Plan[E], record: Record[E], reason: Reason, fate: Fate) -> Settled[E]:
        """A dead letter that nobody waits for."""
        now = self.clock()
        error = record.problem or DeadLetter("the eventId was used before, for another content")
        failure = describe(error, record.event, self.subscription.group)
        tries = Tries(1, now, now)
        organization_id = record.event.organization_id if record.event else None
        letter = letter_document(record, organization_id, reason, failure, tries, blocking=False, now=now)
        plan.writes.dead_letters.append(letter)
        return Settled(record, fate, self.dlq_messages(letter), letter["_id"])

    def dlq_messages(self, letter: Mapping[str, Any]) -> tuple[Message, ...]:
        topic = self.subscription.dead_letter_topic
        return () if topic is None else (letter_message(topic, self.subscription.group, letter),)

    def failed(
        self, record: Record[E], organization_id: str, error: Exception, tries: Tries, before: Letter | None = None
    ) -> tuple[dict[str, Any], Failure]:
        """The dead letter that this failure makes, and the failure."""
        failure = describe(error, record.event, self.subscription.group)
        letter = letter_document(
            record,
            organization_id,
            _reason(error),
            failure,
            tries,
            blocking=True,
            now=self.clock(),
            before=before,
        )
        return letter, failure


def _reason(error: Exception) -> Reason:
    if isinstance(error, Undecodable):
        return "undecodable"
    if isinstance(error, Crashed):
        return "crashed"
    return "permanent" if isinstance(error, DeadLetter) else "retries-exhausted"


def _inbox_document(record: Record[E], event: PatientEvent, change: Change, handled: Handled[E]) -> dict[str, Any]:
    return {
        **change.row,
        "_id": record.inbox_id,
        "organizationId": event.organization_id,
        "eventId": str(event.event_id),
        "patientId": event.patient_id,
        "source": source_document(record.position),
        "contentHash": record.content_hash,
        "messages": [message_document(message) for message in change.messages],
        "processedAt": handled.started,
        "processingDurationMs": handled.duration_ms,
    }

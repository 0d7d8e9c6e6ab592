"""Compares a sender's ledger with what was found in the stores and on the topics. Pure.

    distinct accepted events = applied + parked + dead-lettered (+ discarded), each exactly once,
    applied order per patient = acceptance order, none overtakes one that waits

An event without an answer took effect at most once, after all that was accepted before it was sent. A refused one
never did. The order of application is told by each patient's trail (`trail.py`), which grows with its state, and
by the processed topic, where the first occurrence of each event counts: repetitions are allowed there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .ledger import Entry, Ledger
from .trail import Trail, trail_of

__all__ = ["MINIMUM_ACCEPTED", "DeadLetter", "Found", "Violation", "judge"]

# A run in which fewer of the valid events were accepted proves nothing.
MINIMUM_ACCEPTED = 0.95

Ids = Mapping[str, Sequence[str]]  # eventIds by patient


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as the store has it; `blocking`: its patient waits behind it."""

    id: str
    patient: str
    event_id: str
    status: str
    blocking: bool = True


@dataclass(frozen=True, slots=True)
class Found:
    """What came of the events of one organization. `None` where it was not looked at."""

    applied: Ids = field(default_factory=dict)  # inbox rows of the processor, in any order
    trails: Mapping[str, Trail] = field(default_factory=dict)
    emitted: Ids = field(default_factory=dict)  # the processed topic, in its order, with repetitions
    differing: Ids = field(default_factory=dict)  # those of which the topic has messages that are not the same bytes
    parked: Ids = field(default_factory=dict)  # in the order of the queue; its head, once dead, is not among them
    dead_letters: Sequence[DeadLetter] = ()
    dlq: frozenset[str] | None = None  # ids of the dead letters on the DLQ topic
    histories: Ids | None = None  # rows of claims in the order applied
    history_totals: Mapping[str, int] | None = None  # how many events claims counted into each patient's summary


@dataclass(frozen=True, slots=True)
class Violation:
    """`kind`: lost, twice, order, overtaken, invented, trail, emitted, dlq, claims, answer, acceptance."""

    kind: str
    patient: str = ""
    event_id: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.kind, self.patient, self.event_id, self.detail) if part)


def judge(ledger: Ledger, found: Found, *, minimum_accepted: float = MINIMUM_ACCEPTED) -> list[Violation]:
    """Every violation of the promise; [] if it was kept."""
    waiting = _waiting(found)
    violations = [
        *_acceptance(ledger, minimum_accepted),
        *_answers(ledger),
        *_each_once(ledger, found, waiting),
    ]
    for patient in sorted({*ledger.patients, *found.emitted, *found.trails}):
        violations += _in_order(patient, ledger.patients.get(patient, ()), found, waiting)
    violations += _dlq(found)
    violations += _claims(ledger, found)
    return violations


def _waiting(found: Found) -> dict[str, list[str]]:
    """Per patient what waits: the dead head of its queue first, then what is parked behind it."""
    waiting: dict[str, list[str]] = {}
    for letter in found.dead_letters:
        if letter.status == "open" and letter.blocking:
            waiting.setdefault(letter.patient, []).append(letter.event_id)
    for patient, parked in found.parked.items():
        waiting.setdefault(patient, []).extend(parked)
    return waiting


def _discarded(found: Found) -> set[str]:
    return {letter.event_id for letter in found.dead_letters if letter.status == "discarded" and letter.blocking}


def _acceptance(ledger: Ledger, minimum: float) -> Iterable[Violation]:
    valid = sum(entry.valid for entry in ledger)
    accepted = sum(entry.valid and entry.accepted for entry in ledger)
    if not valid or accepted < minimum * valid:
        yield Violation("acceptance", detail=f"{accepted} of {valid} valid events were accepted")


def _answers(ledger: Ledger) -> Iterable[Violation]:
    """What is valid is accepted or not answered; what is not is refused."""
    for entry in ledger:
        wrong = [answer for answer in entry.answers if answer is not None and (answer == 202) != entry.valid]
        if wrong:
            yield Violation("answer", entry.patient, entry.event_id, f"answered {wrong} though valid={entry.valid}")


def _each_once(ledger: Ledger, found: Found, waiting: Ids) -> Iterable[Violation]:
    places: Counter[tuple[str, str]] = Counter()
    for by_patient in (found.applied, waiting):
        for patient, ids in by_patient.items():
            for event_id in ids:
                places[patient, event_id] += 1
    discarded = _discarded(found)
    for letter in found.dead_letters:
        if letter.event_id in discarded and letter.status == "discarded":
            places[letter.patient, letter.event_id] += 1
    for (patient, event_id), count in places.items():
        entry = ledger.entries.get(event_id)
        if entry is None or entry.patient != patient or not (entry.accepted or entry.perhaps):
            yield Violation("invented", patient, event_id)
        if count > 1:
            yield Violation("twice", patient, event_id, f"found in {count} places")
    for entry in ledger:
        if entry.accepted and not places[entry.patient, entry.event_id]:
            yield Violation("lost", entry.patient, entry.event_id, f"number {entry.number}")


def _in_order(patient: str, sent: Sequence[Entry], found: Found, waiting: Ids) -> Iterable[Violation]:
    applied = found.applied.get(patient, ())
    emitted = list(dict.fromkeys(found.emitted.get(patient, ())))
    if missing := set(applied) - set(emitted):
        yield Violation("emitted", patient, min(missing), f"{len(missing)} applied events are not on the topic")
    if extra := set(emitted) - set(applied):
        yield Violation("emitted", patient, min(extra), f"{len(extra)} events on the topic were not applied")
    for event_id in found.differing.get(patient, ()):
        yield Violation("emitted", patient, event_id, "was published again as something else")
    trail = found.trails.get(patient, Trail())
    distinct = len(set(applied))
    if trail.applied != distinct:
        kind = "twice" if trail.applied > distinct else "lost"
        yield Violation(kind, patient, detail=f"the state has {trail.applied} events applied, the inbox {distinct}")
    elif trail != trail_of(emitted) and not missing and not extra:
        yield Violation("trail", patient, detail="the state was not made in the order of the topic")
    # A later attempt of an event without an answer may arrive at any time; all others have one place.
    perhaps = {entry.event_id for entry in sent if entry.perhaps}
    yield from _same_order(patient, sent, emitted, perhaps, "applied")
    yield from _same_order(patient, sent, waiting.get(patient, ()), perhaps, "waiting")
    if first := next(iter(waiting.get(patient, ())), None):
        order = [entry.event_id for entry in sent if entry.event_id not in perhaps]
        if first in order:
            for event_id in sorted(set(order[order.index(first) + 1 :]) & set(applied)):
                yield Violation("overtaken", patient, event_id, f"was applied while {first} waits")


def _same_order(
    patient: str, sent: Sequence[Entry], ids: Sequence[str], perhaps: set[str], what: str
) -> Iterable[Violation]:
    numbers = {entry.event_id: place for place, entry in enumerate(sent)}
    last = -1
    for event_id in ids:
        if event_id not in numbers:
            continue
        if event_id in perhaps:
            continue
        if numbers[event_id] < last:
            yield Violation("order", patient, event_id, f"{what} after an event that was accepted later")
        last = max(last, numbers[event_id])
    yield from _not_too_early(patient, numbers, ids, perhaps)


def _not_too_early(
    patient: str, numbers: Mapping[str, int], ids: Sequence[str], perhaps: set[str]
) -> Iterable[Violation]:
    """An event without an answer comes after all that was accepted before it was sent."""
    if perhaps.isdisjoint(ids):
        return
    earliest = len(numbers)
    for event_id in reversed(ids):
        place = numbers.get(event_id)
        if place is None:
            continue
        if event_id in perhaps:
            if place > earliest:
                yield Violation("order", patient, event_id, "applied before an event accepted before it was sent")
        else:
            earliest = min(earliest, place)


def _dlq(found: Found) -> Iterable[Violation]:
    if found.dlq is None:
        return
    known = {letter.id for letter in found.dead_letters}
    for letter in found.dead_letters:
        if letter.id not in found.dlq:
            yield Violation("dlq", letter.patient, letter.event_id, f"dead letter {letter.id} is not on the topic")
    for letter_id in sorted(found.dlq - known):
        yield Violation("dlq", detail=f"{letter_id} is on the topic and not in the store")


def _claims(ledger: Ledger, found: Found) -> Iterable[Violation]:
    if found.histories is None:
        return
    for patient in sorted({*ledger.patients, *found.histories}):
        history = list(found.histories.get(patient, ()))
        expected = list(dict.fromkeys(found.emitted.get(patient, ())))
        if history != expected:
            detail = f"claims has {len(history)} events, {len(expected)} were published"
            if sorted(history) == sorted(expected):
                detail = "claims has them in another order"
            yield Violation("claims", patient, detail=detail)
        total = (found.history_totals or {}).get(patient, 0)
        if found.history_totals is not None and total != len(expected):
            yield Violation("claims", patient, detail=f"claims counted {total} events, {len(expected)} were published")

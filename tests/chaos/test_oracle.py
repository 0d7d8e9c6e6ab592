"""The oracle sees what must not happen; a checker that cannot fail proves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from .ledger import Entry, Ledger
from .oracle import DeadLetter, Found, judge
from .trail import trail_of

P = "org/p1"


def entry(number: int, *answers: int | None, valid: bool = True, patient: str = P) -> Entry:
    return Entry(f"e{number}", patient, number, valid, list(answers or (202,)))


def ledger(*entries: Entry) -> Ledger:
    return Ledger(entries or [entry(n) for n in range(1, 6)])


def applied(*numbers: int, parked: Sequence[int] = (), dead: Sequence[int] = (), patient: str = P) -> Found:
    """All is well with these events: applied in this order, the others waiting."""
    ids = [f"e{n}" for n in numbers]
    letters = [DeadLetter(f"t-0-{n}", patient, f"e{n}", "open") for n in dead]
    return Found(
        applied={patient: ids} if ids else {},
        trails={patient: trail_of(ids)} if ids else {},
        emitted={patient: ids} if ids else {},
        parked={patient: [f"e{n}" for n in parked]} if parked else {},
        dead_letters=letters,
        dlq=frozenset(letter.id for letter in letters),
        histories={patient: ids} if ids else {},
        history_totals={patient: len(ids)} if ids else {},
    )


def kinds(ledger: Ledger, found: Found) -> set[str]:
    return {violation.kind for violation in judge(ledger, found)}


def test_a_run_in_which_all_went_well_has_no_violation() -> None:
    assert judge(ledger(), applied(1, 2, 3, 4, 5)) == []
    assert judge(ledger(), applied(1, 2, parked=[4, 5], dead=[3])) == []
    assert judge(ledger(), applied(parked=[1, 2, 3, 4, 5])) == []


def test_a_repetition_on_the_topic_is_allowed() -> None:
    found = applied(1, 2, 3, 4, 5)
    assert judge(ledger(), replace(found, emitted={P: ["e1", "e2", "e1", "e2", "e3", "e3", "e4", "e5"]})) == []


def test_a_refused_event_that_left_no_trace_is_fine_and_so_is_one_without_an_answer() -> None:
    book = ledger(*(entry(n) for n in range(1, 41)), entry(41, 400, valid=False), entry(42, None), entry(43))
    numbers = [*range(1, 41), 43]
    assert judge(book, applied(*numbers)) == []
    assert judge(book, applied(*range(1, 41), 42, 43)) == []
    assert judge(book, applied(*numbers, 42)) == []  # its late attempt arrived after the next one


def test_a_discarded_event_is_accounted_for_and_lets_others_pass() -> None:
    found = applied(1, 2, 4, 5)
    letter = DeadLetter("t-0-3", P, "e3", "discarded")
    assert judge(ledger(), replace(found, dead_letters=[letter], dlq=frozenset(["t-0-3"]))) == []


def test_a_redriven_event_that_was_applied_is_accounted_for_once() -> None:
    letter = DeadLetter("t-0-3", P, "e3", "redriven")
    assert judge(ledger(), replace(applied(1, 2, 3, 4, 5), dead_letters=[letter], dlq=frozenset(["t-0-3"]))) == []


def test_a_lost_event_is_seen() -> None:
    assert "lost" in kinds(ledger(), applied(1, 2, 3, 4))
    assert "lost" in kinds(ledger(), applied(1, 2, parked=[5], dead=[3]))


def test_a_lost_effect_is_seen_though_its_inbox_row_is_there() -> None:
    assert kinds(ledger(), replace(applied(1, 2, 3, 4, 5), trails={P: trail_of(["e1", "e2", "e3", "e4"])})) == {"lost"}


def test_a_lost_message_is_seen_though_the_event_was_applied() -> None:
    assert "emitted" in kinds(ledger(), replace(applied(1, 2, 3, 4, 5), emitted={P: ["e1", "e2", "e3", "e5"]}))


def test_a_message_without_an_effect_is_seen() -> None:
    found = applied(1, 2, 3, 4)
    assert "emitted" in kinds(ledger(), replace(found, emitted={P: ["e1", "e2", "e3", "e4", "e5"]}))


def test_a_message_repeated_as_something_else_is_seen() -> None:
    """What is published again is what was committed; handling an event anew would make another message."""
    found = replace(applied(1, 2, 3, 4, 5), emitted={P: ["e1", "e2", "e2", "e3", "e4", "e5"]}, differing={P: ["e2"]})
    assert kinds(ledger(), found) == {"emitted"}


def test_a_doubled_event_is_seen_in_the_inbox_and_in_the_state() -> None:
    found = applied(1, 2, 3, 4, 5)
    assert "twice" in kinds(ledger(), replace(found, applied={P: ["e1", "e2", "e2", "e3", "e4", "e5"]}))
    assert kinds(ledger(), replace(found, trails={P: trail_of(["e1", "e1", "e2", "e3", "e4", "e5"])})) == {"twice"}


def test_an_event_both_applied_and_waiting_is_seen() -> None:
    assert "twice" in kinds(ledger(), applied(1, 2, 3, 4, 5, parked=[5]))
    assert "twice" in kinds(ledger(), applied(1, 2, 3, parked=[3, 4, 5], dead=[]))


def test_reordered_events_are_seen() -> None:
    assert "order" in kinds(ledger(), applied(1, 3, 2, 4, 5))
    assert "order" in kinds(ledger(), applied(1, parked=[3, 2, 4, 5]))


def test_a_state_made_in_another_order_than_the_topic_says_is_seen() -> None:
    found = replace(applied(1, 2, 3, 4, 5), trails={P: trail_of(["e1", "e3", "e2", "e4", "e5"])})
    assert kinds(ledger(), found) == {"trail"}


def test_an_event_that_overtakes_one_that_waits_is_seen() -> None:
    assert kinds(ledger(), applied(1, 2, 4, dead=[3], parked=[5])) == {"overtaken"}
    assert kinds(ledger(), applied(1, 5, parked=[2, 3, 4])) == {"overtaken"}


def test_an_event_without_an_answer_that_comes_before_an_earlier_accepted_one_is_seen() -> None:
    book = ledger(*(entry(n) for n in range(1, 41)), entry(41, None))
    assert kinds(book, applied(*range(1, 40), 41, 40)) == {"order"}


def test_an_event_without_an_answer_that_takes_effect_twice_is_seen() -> None:
    book = ledger(*(entry(n) for n in range(1, 41)), entry(41, None))
    found = applied(*range(1, 42))
    assert "twice" in kinds(book, replace(found, trails={P: trail_of([*found.applied[P], "e41"])}))


def test_an_invented_event_is_seen_and_so_is_a_refused_one_that_took_effect() -> None:
    assert "invented" in kinds(ledger(), applied(1, 2, 3, 4, 5, 6))
    assert "invented" in kinds(ledger(), applied(parked=[1, 2, 3, 4, 5, 6]))
    refused = ledger(*(entry(n) for n in range(1, 41)), entry(41, 400, valid=False))
    assert kinds(refused, applied(*range(1, 42))) == {"invented"}


def test_an_event_found_with_another_patient_is_seen() -> None:
    found = applied(1, 2, 3, 4, 5, patient="other/p1")
    assert {"lost", "invented"} <= kinds(ledger(), found)


def test_a_run_with_too_few_accepted_proves_nothing() -> None:
    book = ledger(*(entry(n) for n in range(1, 95)), *(entry(n, None) for n in range(95, 101)))
    assert kinds(book, applied(*range(1, 95))) == {"acceptance"}
    assert kinds(Ledger(), Found()) == {"acceptance"}


@pytest.mark.parametrize("wrong", [entry(6, 400), entry(6, 500, 202), entry(6, 202, valid=False)])
def test_a_wrong_answer_is_seen(wrong: Entry) -> None:
    book = ledger(*(entry(n) for n in range(1, 6)), wrong)
    assert "answer" in kinds(book, applied(*(range(1, 7) if wrong.accepted else range(1, 6))))


def test_a_dead_letter_that_never_reached_its_topic_is_seen_and_so_is_an_unknown_one() -> None:
    found = applied(1, 2, parked=[4, 5], dead=[3])
    assert kinds(ledger(), replace(found, dlq=frozenset())) == {"dlq"}
    assert kinds(ledger(), replace(found, dlq=frozenset(["t-0-3", "t-0-9"]))) == {"dlq"}


def test_a_history_that_differs_from_what_was_published_is_seen() -> None:
    found = applied(1, 2, 3, 4, 5)
    for history in (["e1", "e2", "e3", "e4"], ["e1", "e3", "e2", "e4", "e5"], ["e1", "e2", "e3", "e4", "e5", "e5"]):
        assert kinds(ledger(), replace(found, histories={P: history})) == {"claims"}
    assert kinds(ledger(), replace(found, history_totals={P: 6})) == {"claims"}

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import bson
from hypothesis import given
from hypothesis import strategies as st

from carebus_claims.handlers import MAX_FLAGS, MAX_TYPES, record_history
from carebus_common.consumer.change import Change, Delivery, Position
from carebus_common.contracts.processed import ProcessedEvent

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FLAG = {"kind": "lab-result", "code": "K", "value": 6.1, "unit": "mmol/L", "low": 3.5, "high": 5.1, "direction": "high"}
STAY = {"stayId": "s-1", "status": "open", "openedAt": NOON, "location": "ward 4"}


def applied(state: Any, event: ProcessedEvent) -> Change:
    return record_history(state, Delivery(event, Position("t", 0, 0), NOON))


def after(*history: ProcessedEvent) -> Any:
    state = None
    for event in history:
        state = applied(state, event).state
    return state


def test_the_row_holds_the_event_its_outcome_and_the_stay_after_it(events: Any) -> None:
    event_id = UUID(int=7)
    event = events(
        eventId=event_id, type="LAB_RESULT", data={"code": "K"}, stay=STAY, processing={"late": True, "flags": [FLAG]}
    )

    row = applied(None, event).row

    assert row == {
        "type": "LAB_RESULT",
        "canonicalType": "lab-result",
        "ts": NOON,
        "receivedAt": NOON,
        "data": {"code": "K"},
        "processing": {
            "status": "processed",
            "message": "stored",
            "late": True,
            "flags": [FLAG],
            "processedAt": NOON + timedelta(seconds=1),
        },
        "stay": {**STAY, "closedAt": None, "transfers": 0, "treatments": 0, "medications": 0},
    }


def test_the_first_event_of_a_patient_starts_its_summary(events: Any) -> None:
    assert after(events(type="admission", stay=STAY)) == {
        "stay": {**STAY, "closedAt": None, "transfers": 0, "treatments": 0, "medications": 0},
        "flags": [],
        "flagTotal": 0,
        "types": [{"type": "admission", "count": 1}],
        "otherTypes": 0,
        "eventTotal": 1,
        "lateTotal": 0,
        "oldestTs": NOON,
        "newestTs": NOON,
        "firstSeenAt": NOON,
        "lastSeenAt": NOON,
    }


def test_both_spellings_of_a_type_count_as_one(events: Any) -> None:
    state = after(events(type="LAB_RESULT"), events(type="lab-result"), events(type="lab.result"))

    assert state["types"] == [{"type": "lab-result", "count": 2}, {"type": "lab.result", "count": 1}]


def test_a_late_event_counts_and_leaves_the_newest_time_alone(events: Any) -> None:
    earlier = NOON - timedelta(days=1)

    state = after(events(), events(ts=earlier, receivedAt=NOON + timedelta(hours=1), processing={"late": True}))

    assert (state["eventTotal"], state["lateTotal"]) == (2, 1)
    assert (state["oldestTs"], state["newestTs"]) == (earlier, NOON)
    assert (state["firstSeenAt"], state["lastSeenAt"]) == (NOON, NOON + timedelta(hours=1))


def test_the_summary_keeps_the_newest_flags_first_and_counts_all(events: Any) -> None:
    state = after(*(events(processing={"flags": [{**FLAG, "code": f"c{n}"}]}) for n in range(25)))

    assert [flag["code"] for flag in state["flags"]] == [f"c{n}" for n in range(24, 4, -1)]
    assert state["flagTotal"] == 25


def test_a_flag_in_the_summary_names_its_event(events: Any) -> None:
    event = events(processing={"flags": [FLAG]})

    assert after(event)["flags"] == [{**FLAG, "eventId": str(event.event_id), "ts": NOON}]


def test_the_two_hundred_and_first_type_counts_as_other(events: Any) -> None:
    state = after(*(events(type=f"t{n}") for n in range(MAX_TYPES + 3)), events(type="t0"))

    assert len(state["types"]) == MAX_TYPES
    assert state["otherTypes"] == 3
    assert state["types"][0] == {"type": "t0", "count": 2}
    assert state["eventTotal"] == MAX_TYPES + 4


def test_a_discharge_shows_the_closed_stay_and_a_new_patient_none(events: Any) -> None:
    assert after(events())["stay"] is None
    assert after(events(stay=STAY), events(stay={**STAY, "status": "closed", "closedAt": NOON}))["stay"]["closedAt"]


def test_the_summary_stays_small_whatever_senders_put_into_codes_and_locations(events: Any) -> None:
    huge = "x" * 250_000
    state = after(
        *(
            events(
                type=f"t{n}" + "y" * 60,
                stay={**STAY, "location": huge},
                processing={"flags": [{**FLAG, "code": huge, "unit": huge}] * 3},
            )
            for n in range(MAX_TYPES + 50)
        )
    )

    assert len(state["flags"]) == MAX_FLAGS
    assert len(bson.encode(state)) < 64 * 1024


def test_the_state_before_is_left_as_it_was(events: Any) -> None:
    before = after(events(processing={"flags": [FLAG]}))
    copy = bson.decode(bson.encode(before))

    applied(before, events(processing={"flags": [FLAG]}))

    assert bson.decode(bson.encode(before)) == copy


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 5), st.booleans()), max_size=300))
def test_the_totals_add_up_for_any_stream(stream: list[tuple[int, int, bool]]) -> None:
    state: Any = None
    for kind, flags, late in stream:
        event = ProcessedEvent.model_validate(
            {
                "eventId": UUID(int=1),
                "organizationId": "o",
                "patientId": "p",
                "type": f"t{kind}",
                "ts": NOON,
                "receivedAt": NOON,
                "data": {},
                "processing": {"message": "m", "processedAt": NOON, "late": late, "flags": [FLAG] * flags},
            }
        )
        state = applied(state, event).state

    if stream:
        assert sum(entry["count"] for entry in state["types"]) + state["otherTypes"] == len(stream)
        assert state["flagTotal"] == sum(flags for _, flags, _ in stream)
        assert len(state["flags"]) == min(MAX_FLAGS, state["flagTotal"])
        assert state["lateTotal"] == sum(late for *_, late in stream)

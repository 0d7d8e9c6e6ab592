"""Sequences that broke the runtime once, found by `test_model`, each under many interleavings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest

from .oracle import Oracle, settle
from .simulation import PARTITIONS, Event, Patient, Script, World

P, Q = Patient("a", "p", 0), Patient("a", "q", 0)


@pytest.fixture(params=range(20))
def world(request: pytest.FixtureRequest, quiet: None) -> Iterator[World]:
    world = World(request.param)
    world.start("one")
    world.rebalance(dict.fromkeys(range(PARTITIONS), "one"))
    world.pass_time(1)
    yield world
    world.close()


def send(world: World, patient: Patient, kind: str, failures: int = 0, copy_of: int | None = None) -> int:
    """Accept an event; its number. `copy_of`: the event whose eventId it uses again."""
    n = len(world.scripts)
    world.scripts[n] = Script(kind, failures)
    event_id = UUID(int=n if copy_of is None else copy_of)
    world.accept(patient, Event(event_id, patient.organization_id, patient.patient_id, n))
    return n


def until(world: World, condition: Callable[[], bool]) -> bool:
    for _ in range(500):
        if condition():
            return True
        world.pass_time(0.002)
    return False


def seen(world: World, patient: Patient) -> list[int]:
    row = world.memory["patients"].get(patient.row_id)
    return row["state"]["seen"] if row and row["state"] else []


def test_a_slow_event_takes_effect_though_the_store_refuses_the_one_after_it(world: World) -> None:
    send(world, P, "slow")
    send(world, P, "refused")
    settle(world)
    assert seen(world, P) == [0]


def test_a_request_may_name_an_older_dead_letter_of_the_patient_beside_the_open_one(world: World) -> None:
    n = send(world, P, "permanent")
    settle(world)
    world.ask("redrive", ["t-0-0"])
    settle(world)
    world.scripts[n].mended = True
    world.ask("redrive", ["t-0-0~1", "t-0-0"])
    settle(world)
    assert seen(world, P) == [n]


def test_a_discard_that_comes_while_the_letter_is_redriven_does_not_pass_it_by(world: World) -> None:
    send(world, Q, "fine")
    send(world, Q, "fine", copy_of=0)
    send(world, P, "failing")
    settle(world)
    world.ask("redrive", ["t-0-2"])
    world.ask("discard", ["t-0-1", "t-0-2"])
    settle(world)
    assert world.memory["dead_letters"]["t-0-1"]["status"] == "discarded"


@pytest.mark.parametrize("kind", ["flaky", "permanent"])
def test_a_patient_is_not_parked_for_ever_when_the_answer_to_the_parking_is_lost(world: World, kind: str) -> None:
    world.store.state = "unsure"
    send(world, P, kind, 1)
    world.pass_time(0.3)
    assert seen(world, P) == []
    settle(world)
    assert seen(world, P) == ([0] if kind == "flaky" else [])


def test_what_was_drained_but_not_published_is_published_in_order_by_the_next_owner(world: World) -> None:
    def last_try() -> bool:
        parked = world.memory["parked_patients"].get(P.row_id)
        return world.group.committed.get(0) == 1 and parked is not None and parked["attempts"] == 3

    send(world, P, "flaky", 3)
    assert until(world, last_try)
    send(world, P, "fine")  # delivered again after the crash, unless it was committed
    world.pass_time(0.06)
    world.broker.state = "hangs"
    assert until(world, lambda: seen(world, P) == [0, 1])
    world.crash("one")
    world.broker.state = "up"
    world.start("one")
    world.rebalance(dict.fromkeys(range(PARTITIONS), "one"))
    for _ in range(100):
        world.pass_time(0.005)
        Oracle(world).check()
    settle(world)


def test_a_conflict_whose_dead_letter_was_cut_off_is_published_though_its_patient_is_parked_since(world: World) -> None:
    send(world, P, "fine")
    send(world, P, "failing")
    settle(world)
    world.broker.state = "hangs"
    send(world, P, "fine", copy_of=0)
    send(world, P, "fine")
    world.pass_time(0.1)
    world.crash("one")
    settle(world)


def test_what_was_applied_before_the_parking_but_not_published_goes_before_the_queue(world: World) -> None:
    world.broker.state = "hangs"
    send(world, P, "slow")
    send(world, P, "flaky", 1)
    assert until(world, lambda: P.row_id in world.memory["parked_patients"])
    world.crash("one")
    world.broker.state = "up"
    world.pass_time(1)  # its retry is overdue
    world.start("one")
    world.rebalance(dict.fromkeys(range(PARTITIONS), "one"))
    for _ in range(100):
        world.pass_time(0.005)
        Oracle(world).check()
    settle(world)

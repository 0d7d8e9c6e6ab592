"""The runtime against a model of what it promises, through whatever sequence of events, faults and crashes.

`CAREBUS_MODEL_EXAMPLES=5000` looks longer, and elsewhere at each run.
"""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from carebus_common.testing.consumer import State

from .oracle import Oracle, settle
from .simulation import FAILING, PARTITIONS, PASSING, Event, Patient, Script, World

PATIENTS = (Patient("a", "p", 0), Patient("b", "p", 0), Patient("a", "q", 0), Patient("a", "r", 1))
REPLICAS = ("one", "two")

patients = st.sampled_from(PATIENTS)
replicas = st.sampled_from(REPLICAS)
# Fine ones twice as often: somebody must stand behind those that fail.
kinds = st.sampled_from([*PASSING, "fine", *FAILING, "copy", "conflict", "elsewhere", "undecodable", "keyless"])
index = st.integers(0, 1000)
splits = st.tuples(st.integers(0, 1), st.integers(0, 1))
actions = st.sampled_from(["redrive", "redrive", "discard"])
moments = st.sampled_from([0.0, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0])

# The store, the broker that is published to, and the group's coordinator.
Weather = tuple[State, State, State]
FAIR: Weather = ("up", "up", "up")
STORMS: tuple[Weather, ...] = (
    *((state, "up", "up") for state in ("away", "unsure", "hangs")),
    *(("up", state, "up") for state in ("away", "unsure", "hangs")),
    ("up", "up", "away"),
    ("up", "up", "unsure"),
    ("unsure", "away", "up"),
)
weathers = st.one_of(st.just(FAIR), st.sampled_from(STORMS))


class Runtime(RuleBasedStateMachine):
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()
        # What failed once fails again: there is nothing to settle then.
        self.broken = False

    @initialize(
        seed=st.integers(0, 2**32),
        batch=st.sampled_from([4000, 5, 2]),
        idle=st.sampled_from([20_000, 1]),
        remembered=st.sampled_from([100_000, 2]),
        in_flight=st.sampled_from([20_000, 6]),
    )
    def begin(self, seed: int, batch: int, idle: int, remembered: int, in_flight: int) -> None:
        self.world = World(
            seed, batch_records=batch, idle_patients=idle, remembered_ids=remembered, in_flight_records=in_flight
        )
        self.world.start("one")
        self.world.rebalance(dict.fromkeys(range(PARTITIONS), "one"))

    # --- events, time and faults ----------------------------------------------------------------------------------

    @rule(events=st.lists(st.tuples(patients, kinds, index), min_size=1, max_size=8), weather=weathers, seconds=moments)
    def accept(self, events: list[tuple[Patient, str, int]], weather: Weather, seconds: float) -> None:
        for patient, kind, which in events:
            self._accept(patient, kind, which)
        self.let_time_pass(weather, seconds)

    @rule(weather=weathers, seconds=moments)
    def wait(self, weather: Weather, seconds: float) -> None:
        self.let_time_pass(weather, seconds)

    def let_time_pass(self, weather: Weather, seconds: float) -> None:
        world = self.world
        world.store.state, world.broker.state, world.coordinator.state = weather
        world.pass_time(seconds)

    def _accept(self, patient: Patient, kind: str, which: int) -> None:
        world = self.world
        if kind == "keyless":
            world.accept(None, None)
            return
        if kind == "undecodable":
            world.accept(patient, None)
            return
        n = len(world.scripts)
        event = Event(UUID(int=n), patient.organization_id, patient.patient_id, n)
        earlier = [
            r.event for r in world.accepted if r.event is not None and (kind == "elsewhere" or r.patient == patient)
        ]
        if kind in ("copy", "conflict", "elsewhere") and earlier:
            before = earlier[which % len(earlier)]
            if kind == "copy":
                world.accept(patient, before)
                return
            event = msgspec.structs.replace(event, event_id=before.event_id)
        script = Script(kind if kind in PASSING + FAILING else "fine")
        if script.kind in ("flaky", "slow flaky", "pausing"):
            script.failures = 1 + which % 3
        world.scripts[n] = script
        world.accept(patient, event)

    # --- replicas -------------------------------------------------------------------------------------------------

    @rule(
        what=st.sampled_from(["crash", "restart", "leave", "join", "rebalance", "steal"]), name=replicas, split=splits
    )
    def change_the_group(self, what: str, name: str, split: tuple[int, int]) -> None:
        world = self.world
        if what in ("join", "steal") and name not in world.replicas:
            world.start(name)
        elif what in ("crash", "restart") and name in world.replicas:
            world.crash(name)
            if what == "restart":
                world.start(name)
        elif what == "leave" and name in world.replicas:
            world.leave(name)
        names = sorted(world.replicas)
        if what == "steal":
            # The other one was stopped for longer than its session lasts, and goes on in its belief.
            world.steal(name)
        elif names:
            world.rebalance({partition: names[i % len(names)] for partition, i in enumerate(split)})

    # --- people ---------------------------------------------------------------------------------------------------

    @rule(action=actions, which=st.lists(index, max_size=3), mend=st.booleans())
    def ask(self, action: str, which: list[int], mend: bool) -> None:
        """Redrive or discard some dead letters, or all of them."""
        if mend:
            for script in self.world.scripts.values():
                script.mended = True
        letters = list(self.world.memory["dead_letters"].values())
        if letters:
            self._ask(action, [letters[i % len(letters)] for i in which] or letters)

    def _ask(self, action: str, letters: list[dict[str, Any]]) -> None:
        self.world.ask(action, [letter["_id"] for letter in letters])
        self.asked |= {
            letter["_id"]
            for letter in letters
            if letter["status"] == "open" and (letter["blocking"] or action == "discard")
        }

    @rule(which=index)
    def edit(self, which: int) -> None:
        """Make an event of what is none, and redrive it."""
        letters = self.world.memory["dead_letters"]
        unread = [
            row for row in letters.values() if row["status"] == "open" and row["blocking"] and row["eventId"] is None
        ]
        if unread:
            letter = unread[which % len(unread)]
            n = len(self.world.scripts)
            event = Event(UUID(int=n), letter["organizationId"], letter["patientId"], n)
            self.world.scripts[n] = Script("fine")
            self.world.memory.put("dead_letters", {**letter, "edited": msgspec.json.encode(event)})
            self._ask("redrive", [letter])

    # --- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.broken = True
            Oracle(self.world).check()
            self.broken = False

    @rule()
    def settle(self) -> None:
        """Everything is back, and everybody knows what they own: all that can be done is done."""
        self.broken = True
        settle(self.world)
        letters = self.world.memory["dead_letters"]
        unheard = [name for name in sorted(self.asked) if letters[name]["status"] == "open"]
        assert not unheard, unheard
        self.broken = False

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                if not self.broken:
                    self.settle()
                    Oracle(self.world).check()
            finally:
                self.world.close()


LONGER = int(os.environ.get("CAREBUS_MODEL_EXAMPLES", "0"))


@pytest.mark.timeout(900 + LONGER)  # it shrinks what it finds
def test_no_sequence_of_events_faults_and_crashes_breaks_what_the_runtime_promises(quiet: None) -> None:
    run_state_machine_as_test(
        Runtime,
        settings=settings(
            max_examples=LONGER or 250,
            stateful_step_count=40,
            deadline=None,
            derandomize=not LONGER,
            suppress_health_check=list(HealthCheck),
        ),
    )

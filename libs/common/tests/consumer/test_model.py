"""The runtime against a model of what it promises, through whatever sequence of events, faults and crashes.

`CAREBUS_MODEL_EXAMPLES=5000` looks longer, and elsewhere at each run.
"""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from .oracle import Oracle, settle
from .simulation import FAILING, PARTITIONS, PASSING, Event, Patient, Script, World

PATIENTS = (Patient("a", "p", 0), Patient("b", "p", 0), Patient("a", "q", 0), Patient("a", "r", 1))
REPLICAS = ("one", "two")

patients = st.sampled_from(PATIENTS)
replicas = st.sampled_from(REPLICAS)
# Fine ones twice as often: somebody must stand behind those that fail.
kinds = st.sampled_from([*PASSING, "fine", *FAILING, "copy", "conflict", "elsewhere", "undecodable", "keyless"])
index = st.integers(0, 1000)


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

    # --- events ---------------------------------------------------------------------------------------------------

    @rule(events=st.lists(st.tuples(patients, kinds, index), min_size=1, max_size=6), then=st.sampled_from([0, 0.005]))
    def accept(self, events: list[tuple[Patient, str, int]], then: float) -> None:
        for patient, kind, which in events:
            self._accept(patient, kind, which)
        self.world.pass_time(then)

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

    # --- time and faults ------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.002, 0.005, 0.01, 0.02, 0.05, 0.3, 0.6, 3.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(state=st.sampled_from(["up", "up", "away", "unsure", "hangs"]))
    def change_the_store(self, state: Any) -> None:
        self.world.store.state = state

    @rule(state=st.sampled_from(["up", "up", "away", "unsure", "hangs"]))
    def change_the_broker(self, state: Any) -> None:
        self.world.broker.state = state

    # --- replicas -------------------------------------------------------------------------------------------------

    @rule(name=replicas)
    def crash(self, name: str) -> None:
        if name in self.world.replicas:
            self.world.crash(name)

    @rule(name=replicas)
    def leave(self, name: str) -> None:
        if name in self.world.replicas:
            self.world.leave(name)
            self._rebalance((0, 0))

    @rule(name=replicas, split=st.tuples(st.integers(0, 1), st.integers(0, 1)))
    def join(self, name: str, split: tuple[int, int]) -> None:
        if name not in self.world.replicas:
            self.world.start(name)
            self._rebalance(split)

    @precondition(lambda self: self.world.replicas)
    @rule(split=st.tuples(st.integers(0, 1), st.integers(0, 1)))
    def rebalance(self, split: tuple[int, int]) -> None:
        self._rebalance(split)

    def _rebalance(self, split: tuple[int, int]) -> None:
        names = sorted(self.world.replicas)
        if names:
            self.world.rebalance({p: names[i % len(names)] for p, i in enumerate(split)})

    @rule(name=replicas)
    def steal(self, name: str) -> None:
        """The other one was stopped for longer than the session lasts, and goes on in its belief."""
        if name not in self.world.replicas:
            self.world.start(name)
        self.world.steal(name)

    # --- people ---------------------------------------------------------------------------------------------------

    @rule(action=st.sampled_from(["redrive", "redrive", "discard"]), which=st.lists(index, min_size=1, max_size=3))
    def ask(self, action: str, which: list[int]) -> None:
        letters = list(self.world.memory["dead_letters"].values())
        if letters:
            self._ask(action, [letters[i % len(letters)] for i in which])

    @rule(action=st.sampled_from(["redrive", "discard"]), mend=st.booleans())
    def ask_for_all(self, action: str, mend: bool) -> None:
        if mend:
            for script in self.world.scripts.values():
                script.mended = True
        self._ask(action, list(self.world.memory["dead_letters"].values()))

    def _ask(self, action: str, letters: list[dict[str, Any]]) -> None:
        self.world.ask(action, [letter["_id"] for letter in letters])
        self.asked |= {
            letter["_id"]
            for letter in letters
            if letter["status"] == "open" and (letter["blocking"] or action == "discard")
        }

    @rule(which=index)
    def mend(self, which: int) -> None:
        failing = [s for s in self.world.scripts.values() if s.kind in FAILING and not s.mended]
        if failing:
            failing[which % len(failing)].mended = True

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


def test_no_sequence_of_events_faults_and_crashes_breaks_what_the_runtime_promises(quiet: None) -> None:
    run_state_machine_as_test(
        Runtime,
        settings=settings(
            max_examples=LONGER or 100,
            stateful_step_count=40,
            deadline=None,
            derandomize=not LONGER,
            suppress_health_check=list(HealthCheck),
        ),
    )

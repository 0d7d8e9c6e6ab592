"""The experiments, by the numbers of the table in the README."""

from __future__ import annotations

from ..harness import Experiment, Setup
from .away import broken_producer, broker_away, store_away
from .crashes import at_every_step, before_transactions
from .members import halted_member, joining_and_leaving
from .parking import always_failing, killed_while_parking, third_of_twenty, transient_failures
from .rebuild import rebuild
from .shutdown import sigterm_under_load
from .storm import storm
from .traffic import one_patient_has_half, parallel_copies

__all__ = ["EXPERIMENTS", "PROBES"]

_PROXIED = Setup(processors=2, ingest=1, proxied=True)

EXPERIMENTS = (
    Experiment(1, "storm of events, duplicates, failures and kills", storm),
    Experiment(2, "a processor halts beyond its session", halted_member),
    Experiment(3, "a process dies at each step", at_every_step),
    Experiment(4, "a member joins or leaves every 3 s", joining_and_leaving),
    Experiment(5, "200 parallel copies of one event", parallel_copies),
    Experiment(6, "event 3 of 20 of a patient fails", third_of_twenty),
    Experiment(7, "kills while patients are parked and redriven", killed_while_parking),
    Experiment(8, "a handler that always fails", always_failing),
    Experiment(14, "one patient has half of the traffic", one_patient_has_half),
    Experiment(12, "SIGTERM of each service under load", sigterm_under_load),
    Experiment(15, "read models dropped and rebuilt", rebuild),
    Experiment(9, "database away", store_away, _PROXIED),
    Experiment(10, "broker away", broker_away, _PROXIED),
    Experiment(11, "a producer's fatal error", broken_producer, _PROXIED),
)

# Parts of the above, for planted bugs.
PROBES = (
    Experiment(31, "a process dies just before its transaction", before_transactions),
    Experiment(61, "event 3 of 20 fails once", transient_failures),
)

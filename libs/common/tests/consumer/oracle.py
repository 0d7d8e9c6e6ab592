"""What must hold of a simulated world: at any moment, and once nothing is under way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from .simulation import DLQ, FAILING, OUT, SETTLED_WITHIN, Accepted, Patient, World

Document = dict[str, Any]

# What needs nothing more: it had its effect, or never will have one.
FINAL = ("applied", "discarded", "duplicate", "conflict", "apart")


class Oracle:
    """One look at a world's store and topics."""

    def __init__(self, world: World) -> None:
        self.world = world
        memory = world.memory
        self.inbox, self.patients = memory["inbox"], memory["patients"]
        self.letters, self.parked = memory["dead_letters"], memory["parked_patients"]
        self.requests = memory["dead_letter_requests"]
        self.by_source = {place(row): row for row in self.inbox.values()}
        self.queues: dict[str, list[tuple[int, Document]]] = defaultdict(list)
        for name, row in memory["parked_events"].items():
            row_id, _, number = name.rpartition("#")
            self.queues[row_id].append((int(number), row))
        for queue in self.queues.values():
            queue.sort(key=lambda numbered: numbered[0])
        self.waiting = {place(row) for queue in self.queues.values() for _, row in queue}
        self.heads = {place(self.letters[row["deadLetter"]]) for row in self.parked.values() if row["deadLetter"]}
        self.newest: dict[str, Document] = {}
        for letter in self.letters.values():
            before = self.newest.get(place(letter))
            if before is None or before["redrives"] < letter["redrives"]:
                self.newest[place(letter)] = letter
        self.emitted: dict[str, list[int]] = defaultdict(list)
        self.dead: set[str] = set()
        for message in world.published:
            if message.topic == OUT and message.key and message.value:
                self.emitted[message.key.decode()].append(int(message.value))
            elif message.topic == DLQ:
                self.dead.add(dict(message.headers)["dlq.id"].decode())

    def fate(self, record: Accepted) -> str:
        """What became of a record: one of `FINAL`, or open (a dead letter), waiting (in the queue), unseen."""
        if (row := self.by_source.get(record.place)) is not None:
            return "discarded" if "discardedAt" in row else "applied"
        letter = self.newest.get(record.place)
        if record.patient is None:
            return "apart" if letter else "unseen"
        if letter is not None and letter["blocking"]:
            if letter["status"] == "discarded":
                return "discarded"
            if letter["status"] == "open" or outcome_of(letter) == "retrying":
                return "open"
        if record.inbox_id in self.inbox:
            same = self.inbox[record.inbox_id]["contentHash"] == record.content_hash
            return "duplicate" if same else "conflict"
        return "waiting" if record.place in self.waiting else "unseen"

    def of_patient(self) -> dict[Patient, list[Accepted]]:
        records: dict[Patient, list[Accepted]] = defaultdict(list)
        for record in self.world.accepted:
            if record.patient is not None:
                records[record.patient].append(record)
        return records

    # --- at any moment --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert what no crash, no other replica and no answer that was lost may break."""
        for record in self.world.accepted:
            self._check_committed(record)
        self._check_effects()
        for patient, records in self.of_patient().items():
            self._check_order(patient, records)
            self._check_parked(patient.row_id)
        assert self.parked.keys() <= {row_id for row_id, row in self.patients.items() if row["parked"]}
        for letter in self.letters.values():
            self._check_letter(letter)

    def _check_effects(self) -> None:
        """An event has its effects exactly when it has its inbox row, unless that is a discarded one's."""
        carried_out = sorted((row["of"], row["n"]) for row in self.world.memory["effects"].values())
        assert carried_out == sorted((name, row["n"]) for name, row in self.inbox.items() if "discardedAt" not in row)

    def _check_committed(self, record: Accepted) -> None:
        """The committed offset passes only what is seen to, and whose messages are out."""
        fate = self.fate(record)
        if record.offset >= self.world.group.committed.get(record.partition, 0):
            return
        assert fate != "unseen", f"{record.place} is committed, and lost"
        if record.place in self.waiting or fate == "open" or record.place in self.heads:
            return  # its patient is parked until it is out
        if fate == "applied":
            assert self.by_source[record.place]["n"] in self.emitted[record.patient.row_id], (  # type: ignore[union-attr]
                f"the message of {record.place} is lost"
            )
        if fate in ("conflict", "apart"):
            assert record.place in self.dead, f"{record.place} ({fate}) did not come to the dead letters"

    def _check_order(self, patient: Patient, records: list[Accepted]) -> None:
        """Applied once each, in the order of the log, over nobody that waits; published in that order."""
        fates = [self.fate(record) for record in records]
        applied = [self.by_source[r.place]["n"] for r, fate in zip(records, fates, strict=True) if fate == "applied"]
        row = self.patients.get(patient.row_id)
        seen = row["state"]["seen"] if row and row["state"] else []
        assert seen == applied, f"{patient.row_id} saw {seen}, the log says {applied}"
        newest = max((i for i, fate in enumerate(fates) if fate == "applied"), default=0)
        for record, fate in zip(records[:newest], fates, strict=False):
            assert fate in FINAL, f"{record.place} ({fate}) was overtaken"
        out = list(dict.fromkeys(self.emitted[patient.row_id]))
        assert out == seen[: len(out)], f"{patient.row_id} saw {seen}, published {out}"
        first: dict[str | None, Accepted] = {}
        for record, fate in zip(records, fates, strict=True):
            earlier = first.setdefault(record.inbox_id, record)
            if fate == "applied" and record.event is not None:
                assert earlier is record, f"the copy {record.place} took effect, and {earlier.place} did not"

    def _check_parked(self, row_id: str) -> None:
        """A parked patient has a head, and the rows of the queue are those behind it, in order."""
        row, parked, queue = self.patients.get(row_id), self.parked.get(row_id), self.queues.get(row_id, [])
        if row is None or not row["parked"]:
            assert parked is None and not queue, f"{row_id} is not parked, yet its events wait"
            return
        assert parked is not None, f"{row_id} waits for nothing"
        assert parked["token"] == row["parked"]["token"]
        assert [number for number, _ in queue] == list(range(row["parked"]["head"], row["parked"]["next"]))
        offsets = [row["source"]["offset"] for _, row in queue]
        assert offsets == sorted(set(offsets))
        if parked["deadLetter"] is None:
            assert parked["status"] == "retrying" and queue, f"{row_id} has no head"
        else:
            letter = self.letters[parked["deadLetter"]]
            assert not offsets or letter["source"]["offset"] < offsets[0]
            assert parked["status"] != "publishing" or letter["status"] != "discarded"
        if parked["status"] == "dead-lettered":
            assert parked["deadLetter"] in self.dead, f"{row_id} waits for a letter that nobody was sent"

    def _check_letter(self, letter: Document) -> None:
        """A dead letter that is open, or tried again, is the head of its patient's queue."""
        if letter["publishedAt"] is not None:
            assert letter["_id"] in self.dead
        status = letter["status"]
        if letter["blocking"] and (status == "open" or outcome_of(letter) == "retrying"):
            patient = self.parked.get(f"{letter['organizationId']}/{letter['patientId']}")
            assert patient is not None and patient["deadLetter"] == letter["_id"], f"nobody is at {letter['_id']}"

    # --- once nothing is under way --------------------------------------------------------------------------------

    def unsettled(self) -> Iterator[str]:
        """What is still under way, in words."""
        for partition, log in self.world.log.items():
            if self.world.group.committed.get(partition, 0) != len(log):
                yield f"partition {partition} is committed to {self.world.group.committed.get(partition)} of {len(log)}"
        for row_id, patient in self.parked.items():
            if patient["status"] != "dead-lettered":
                yield f"{row_id} is {patient['status']}"
            elif self.letters[patient["deadLetter"]]["status"] != "open":
                yield f"{row_id} waits for {patient['deadLetter']}, which is not open"
        for name in self.requests:
            yield f"request {name} is not carried out"
        for letter in self.letters.values():
            # One that was redriven before its publication, and was cut off, is nobody's concern any more. A conflict
            # that was cut off, and now stands in the queue, is told when its turn comes.
            if letter["status"] == "open" and letter["publishedAt"] is None and place(letter) not in self.waiting:
                yield f"{letter['_id']} is not published"
        for row_id, row in self.patients.items():
            if row["state"] and list(dict.fromkeys(self.emitted[row_id])) != row["state"]["seen"]:
                yield f"not all of {row_id} is emitted"

    def check_settled(self) -> None:
        """Assert that nothing is lost: each record is applied, out of the way, or behind a dead letter to blame."""
        for record in self.world.accepted:
            fate = self.fate(record)
            assert fate != "unseen", f"{record.place} is lost"
            if fate == "open" and record.event is not None:
                kind = self.world.scripts[record.event.n].kind
                assert kind in FAILING, f"{record.place} ({kind}) is a dead letter"
            if fate == "conflict" and record.place not in self.waiting:
                assert record.place in self.newest, f"the conflict of {record.place} is not told"


def settle(world: World) -> None:
    """Bring everything back and wait until all is done that can be done; assert that it is, and what must hold then."""
    world.store.state = world.broker.state = world.coordinator.state = "up"
    if not world.replicas:
        world.start("one")
    if not world.orderly:  # else nobody may need to be told anew what they own
        names = sorted(world.replicas)
        world.rebalance({partition: names[partition % len(names)] for partition in world.log})
    for _ in range(SETTLED_WITHIN * 4):
        world.pass_time(0.25)
        if not any(Oracle(world).unsettled()):
            break
    oracle = Oracle(world)
    unsettled = list(oracle.unsettled())
    assert not unsettled, unsettled
    oracle.check()
    oracle.check_settled()


def place(row: Document) -> str:
    source = row["source"]
    return f"{source['topic']}-{source['partition']}-{source['offset']}"


def outcome_of(letter: Document) -> str | None:
    return letter["outcome"]["status"] if "outcome" in letter else None

"""10,000 random tamperings with chains, each of them found, and no alarm where nothing was touched."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from carebus_claims.chain import EMPTY, ChainCheck, Fault, Head, Link, check_chain, hash_of, head_mac

KEY = b"the key of the audit"
OTHER_KEY = b"a key that somebody guessed"
ORG, OTHER_ORG = "north-hospital", "south-hospital"
NOW = datetime(2026, 11, 25, 8, tzinfo=UTC)
TAMPERINGS = 10_000

Entry = dict[str, Any]


def claim(random_: random.Random, version: int, status: str) -> Entry:
    return {
        "claimId": f"c-{random_.randrange(50)}",
        "version": version,
        "status": status,
        "lines": [
            {"code": str(random_.randrange(9999)), "units": 1, "amount": f"{random_.randrange(99999) / 100:.2f}"}
        ],
        "total": "12.50",
        "statusReason": None,
    }


def chain(random_: random.Random, length: int, organization: str = ORG, key: bytes = KEY) -> tuple[list[Entry], Head]:
    entries: list[Entry] = []
    for seq in range(1, length + 1):
        entry = {
            "_id": f"{organization}/{seq:012d}",
            "organizationId": organization,
            "seq": seq,
            "at": NOW + timedelta(milliseconds=random_.randrange(1000) + 1000 * seq),
            "actor": {"id": f"u-{random_.randrange(9)}", "role": "admin"},
            "action": random_.choice(["created", "updated", "status-changed", "paid"]),
            "claimId": f"c-{random_.randrange(50)}",
            "patientId": f"p-{random_.randrange(9)}",
            "version": random_.randrange(1, 5),
            "before": random_.choice([None, claim(random_, 1, "submitted")]),
            "after": claim(random_, 2, "under_review"),
            "cause": {"kind": "request", "id": f"r-{seq}"},
            "reason": random_.choice([None, "checked"]),
            "requestId": f"r-{seq}",
            "prev": entries[-1]["hash"] if entries else EMPTY,
            "publishedAt": random_.choice([None, NOW]),
        }
        entry["hash"] = hash_of(entry, key)
        entries.append(entry)
    return entries, head_of(entries, organization, key)


def head_of(entries: Sequence[Entry], organization: str = ORG, key: bytes = KEY) -> Head:
    seq, last = (entries[-1]["seq"], entries[-1]["hash"]) if entries else (0, EMPTY)
    return Head(seq, last, head_mac(organization, seq, last, key))


def resealed(entries: Sequence[Entry], key: bytes) -> list[Entry]:
    """All of it numbered, linked and hashed anew, as somebody can do who knows the algorithm and not the key."""
    last = EMPTY
    made = []
    for seq, entry in enumerate(entries, 1):
        one = {**entry, "seq": seq, "prev": last}
        last = one["hash"] = hash_of(one, key)
        made.append(one)
    return made


@dataclass
class Store:
    """What somebody with full access to the store can change."""

    entries: list[Entry]
    head: Head | None
    other: list[Entry]
    other_head: Head
    random: random.Random

    def place(self) -> int:
        return self.random.randrange(len(self.entries))

    def two(self) -> tuple[int, int]:
        first, second = sorted(self.random.sample(range(len(self.entries)), 2))
        return first, second


def edited(value: Any, random_: random.Random) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return random_.choice([value + 1, -value, float(value), str(value), None])
        case str():
            return random_.choice([value + " ", value[:-1], value.upper() + "x", None, 0])
        case datetime():
            return random_.choice([value + timedelta(milliseconds=1), value.isoformat(timespec="milliseconds"), None])
        case None:
            return random_.choice(["", 0, False, {}, "None"])
        case _:
            return None


def edit(store: Store) -> None:
    """One value somewhere in one entry."""
    node: Any = store.entries[store.place()]
    while True:
        names = list(node) if isinstance(node, dict) else list(range(len(node)))
        names = [name for name in names if name not in {"_id", "publishedAt"}]
        name = store.random.choice(names)
        if not isinstance(node[name], dict | list) or not node[name] or store.random.random() < 0.1:
            node[name] = edited(node[name], store.random)
            return
        node = node[name]


def remove_field(store: Store) -> None:
    entry = store.entries[store.place()]
    del entry[store.random.choice([name for name in entry if name not in {"_id", "publishedAt"}])]


def add_field(store: Store) -> None:
    store.entries[store.place()][store.random.choice(["note", "$set", ""])] = store.random.choice([None, 1, "x"])


def delete_some(store: Store) -> None:
    first, second = store.two()
    del store.entries[first:second]


def delete_one(store: Store) -> None:
    del store.entries[store.place()]


def delete_all(store: Store) -> None:
    store.entries.clear()


def swap(store: Store) -> None:
    """The order alone, as if `seq` could not be relied on."""
    first, second = store.two()
    store.entries[first], store.entries[second] = store.entries[second], store.entries[first]


def swap_contents(store: Store) -> None:
    """Two entries change places, numbers and links and all that would give them away."""
    first, second = store.two()
    one, other = store.entries[first], store.entries[second]
    kept = ("_id", "seq", "prev", "hash")
    new_one, new_other = dict(other), dict(one)
    for name in kept:
        new_one[name], new_other[name] = one[name], other[name]
    new_one["note"] = new_other["note"] = "swapped"  # they may have been alike
    store.entries[first], store.entries[second] = new_one, new_other


def repeat(store: Store) -> None:
    store.entries.insert(store.place(), copy.deepcopy(store.entries[store.place()]))


def insert_forged(store: Store) -> None:
    """A new entry with the numbers after it moved up, sealed with another key."""
    store.entries.insert(store.place(), {**store.entries[store.place()], "reason": "forged"})
    store.entries[:] = resealed(store.entries, OTHER_KEY)
    store.head = head_of(store.entries, key=OTHER_KEY)


def append_forged(store: Store) -> None:
    last = store.entries[-1]
    forged = {**last, "seq": last["seq"] + 1, "prev": last["hash"], "reason": "forged"}
    forged["hash"] = hash_of(forged, OTHER_KEY)
    store.entries.append(forged)
    store.head = Head(forged["seq"], forged["hash"], store.head.mac if store.head else "")


def put_foreign(store: Store) -> None:
    """A genuine entry of another organization's chain, at its own number."""
    place = store.random.randrange(min(len(store.entries), len(store.other)))
    store.entries[place] = copy.deepcopy(store.other[place])
    if store.random.random() < 0.5:
        store.entries[place]["organizationId"] = ORG


def cut_tail(store: Store) -> None:
    del store.entries[store.place() :]


def cut_tail_and_move_head(store: Store) -> None:
    assert store.head is not None
    del store.entries[store.place() :]
    moved = head_of(store.entries, key=OTHER_KEY)
    store.head = replace(moved, mac=store.random.choice([store.head.mac, moved.mac, "", store.other_head.mac]))


def change_head(store: Store) -> None:
    assert store.head is not None
    store.head = store.random.choice(
        [
            replace(store.head, seq=store.head.seq + store.random.choice([-1, 1, 1000])),
            replace(store.head, hash=store.entries[0]["prev"] if len(store.entries) > 1 else "0"),
            replace(store.head, mac=store.head.mac[::-1] + "0"),
            store.other_head,
            None,
        ]
    )


TAMPERS: tuple[Callable[[Store], None], ...] = (
    edit,
    edit,
    edit,
    remove_field,
    add_field,
    delete_some,
    delete_one,
    delete_all,
    swap,
    swap_contents,
    repeat,
    insert_forged,
    append_forged,
    put_foreign,
    cut_tail,
    cut_tail_and_move_head,
    change_head,
)


@pytest.mark.timeout(120)
def test_ten_thousand_tamperings_are_all_found_and_nothing_else_is() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    random_ = random.Random(seed)
    tried: Counter[str] = Counter()
    missed: list[tuple[int, str]] = []
    false_alarms = 0
    other, other_head = chain(random_, 12, OTHER_ORG)
    for number in range(TAMPERINGS):
        if number % 20 == 0:
            entries, head = chain(random_, random_.randrange(2, 24))
        tamper = random_.choice(TAMPERS)
        after = random_.choice([None, *entries[:-1]])
        begin = 0 if after is None else after["seq"]
        link = None if after is None else Link(after["seq"], after["hash"])
        false_alarms += bool(check_chain(ORG, entries[begin:], head, KEY, after=link))
        store = Store(copy.deepcopy(entries), head, other, other_head, random_)
        tamper(store)
        tried[tamper.__name__] += 1
        if not check_chain(ORG, store.entries, store.head, KEY):
            missed.append((number, tamper.__name__))
    assert missed == []
    assert false_alarms == 0
    assert tried.total() == TAMPERINGS
    assert tried.keys() == {tamper.__name__ for tamper in TAMPERS}


@pytest.fixture
def seven() -> tuple[list[Entry], Head]:
    return chain(random.Random(7), 7)


def test_a_fault_says_where_and_how(seven: tuple[list[Entry], Head]) -> None:
    entries, head = seven
    assert check_chain(ORG, entries, head, KEY) == []
    assert check_chain(ORG, entries[:3] + entries[4:], head, KEY) == [Fault(4, "missing")]
    assert check_chain(ORG, [*entries[:3], {**entries[3], "reason": "x"}, *entries[4:]], head, KEY) == [
        Fault(4, "altered")
    ]
    assert check_chain(ORG, entries[:5], head, KEY) == [Fault(7, "tail")]
    assert check_chain(ORG, entries, None, KEY) == [Fault(7, "head")]
    assert check_chain(ORG, entries, replace(head, mac="0"), KEY) == [Fault(7, "head")]
    assert Fault(2, "misplaced") in check_chain(ORG, [*entries[:3], entries[1], *entries[3:]], head, KEY)


def test_another_key_finds_every_entry_altered(seven: tuple[list[Entry], Head]) -> None:
    entries, head = seven
    faults = check_chain(ORG, entries, head, OTHER_KEY)
    assert faults == [*(Fault(seq, "altered") for seq in range(1, 8)), Fault(7, "head")]


def test_an_empty_chain_without_a_head_is_whole() -> None:
    assert check_chain(ORG, [], None, KEY) == []


def test_a_chain_goes_on_after_what_was_checked_before(seven: tuple[list[Entry], Head]) -> None:
    entries, head = seven
    after = Link(4, entries[3]["hash"])
    assert check_chain(ORG, entries[4:], head, KEY, after=after) == []
    assert check_chain(ORG, entries[5:], head, KEY, after=after) == [Fault(5, "missing")]
    assert check_chain(ORG, entries[3:], head, KEY, after=after)[0] == Fault(4, "misplaced")
    assert check_chain(ORG, [], head, KEY, after=Link(7, head.hash)) == []
    assert check_chain(ORG, [], head, KEY, after=after) == [Fault(7, "tail")]


def test_a_chain_that_was_put_back_to_an_earlier_state_shows_against_an_anchor(seven: tuple[list[Entry], Head]) -> None:
    entries, head = seven
    anchor = Link(7, head.hash)
    earlier = entries[:5]
    assert check_chain(ORG, earlier, head_of(earlier), KEY) == [], "no chain can show this by itself"
    assert check_chain(ORG, earlier, head_of(earlier), KEY, anchor=anchor) == [Fault(7, "anchor")]
    assert check_chain(ORG, entries, head, KEY, anchor=anchor) == []
    assert check_chain(ORG, entries, head, KEY, anchor=Link(5, entries[4]["hash"])) == []
    assert check_chain(ORG, entries, head, KEY, anchor=Link(5, EMPTY)) == [Fault(5, "anchor")]


def test_when_an_entry_was_published_is_no_part_of_it(seven: tuple[list[Entry], Head]) -> None:
    entries, head = seven
    assert check_chain(ORG, [{**entry, "publishedAt": NOW, "_id": None} for entry in entries], head, KEY) == []


def test_a_time_reads_back_from_the_store_as_it_was_hashed() -> None:
    fine = {"at": datetime(2026, 1, 31, 8, 15, 0, 123456, tzinfo=UTC)}
    kept = {"at": datetime(2026, 1, 31, 8, 15, 0, 123000, tzinfo=UTC)}
    assert hash_of(fine, KEY) == hash_of(kept, KEY)
    assert hash_of(kept, KEY) != hash_of({"at": "2026-01-31T08:15:00.123+00:00"}, KEY)


def test_entries_can_be_checked_as_they_come(seven: tuple[list[Entry], Head]) -> None:
    entries, head = seven
    check = ChainCheck(ORG, KEY)
    assert [check.add(entry) for entry in entries] == [[]] * 7
    assert (check.at, check.count) == (Link(head.seq, head.hash), 7)
    assert check.end(head) == []
    assert all(later["prev"] == earlier["hash"] for earlier, later in pairwise(entries))

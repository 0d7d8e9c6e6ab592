"""Lanes: who may be worked on, and in which shares."""

from __future__ import annotations

from typing import Any

from carebus_common.consumer.change import Position
from carebus_common.consumer.lanes import LaneKey, Lanes, Progress, Record


def record(offset: int) -> Record[Any]:
    return Record(Position("t", 0, offset), b"k", b"", (), 0, None, str(offset), b"")


def key(name: str, partition: int = 0, org: str = "org") -> LaneKey:
    return (partition, org, name.encode())


def test_a_lane_is_taken_once_until_it_is_released() -> None:
    lanes: Lanes[Any] = Lanes(idle_limit=10)
    lanes.append(key("a"), record(1))
    (lane,) = lanes.take(10)
    lanes.append(key("a"), record(2))
    assert lanes.take(10) == {}
    lane.records.popleft()
    lanes.release(lane)
    assert lanes.take(10) == {lane: 1}


def test_a_lane_is_no_more_in_the_hands_of_a_batch_that_let_go_of_it_when_another_has_taken_it() -> None:
    lanes: Lanes[Any] = Lanes(idle_limit=10)
    lanes.append(key("a"), record(1))
    (lane,) = lanes.take(10)
    lane.batch = first = object()
    assert lane.held_by(first)
    lanes.settling(lane)
    assert not lane.held_by(first)
    lanes.release(lane)
    (lane,) = lanes.take(10)
    lane.batch = second = object()
    assert lane.held_by(second)
    assert not lane.held_by(first)
    lanes.revoke([0])
    assert not lane.held_by(second)


def test_one_patients_flood_shares_a_batch_with_everybody_else() -> None:
    lanes: Lanes[Any] = Lanes(idle_limit=10)
    for offset in range(1000):
        lanes.append(key("flood"), record(offset))
    for number in range(9):
        lanes.append(key(f"p{number}"), record(1000 + number))
    taken = lanes.take(200)
    assert len(taken) == 10
    assert max(taken.values()) == 20


def test_a_stopped_lane_is_not_taken_again() -> None:
    lanes: Lanes[Any] = Lanes(idle_limit=10)
    lanes.append(key("a"), record(1))
    (lane,) = lanes.take(10)
    lanes.stop(lane)
    lanes.append(key("a"), record(2))
    assert not lanes.any_ready
    assert lanes.stopped == 1


def test_revoked_partitions_lanes_are_gone_and_marked() -> None:
    lanes: Lanes[Any] = Lanes(idle_limit=10)
    lanes.append(key("a", 0), record(1))
    lanes.append(key("a", 1), record(2))
    busy = lanes.take(1)
    (gone,) = lanes.revoke([0])
    assert gone.revoked
    assert gone in busy
    lanes.release(gone)
    assert len(lanes) == 1
    assert [lane.key[0] for lane in lanes.take(10)] == [1]


def test_idle_lanes_are_forgotten_oldest_first_beyond_the_limit() -> None:
    lanes: Lanes[Any] = Lanes(idle_limit=3)
    for number in range(10):
        lanes.append(key(str(number)), record(number))
        (lane,) = lanes.take(1)
        lane.records.clear()
        lanes.release(lane)
        assert lane.progress is Progress.WAITING
    assert len(lanes) == 3

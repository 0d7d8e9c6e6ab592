from typing import Any

from carebus_cli.client import GatewayClient, Refused
from carebus_cli.readback import count_patients, wait_for_counts

from .conftest import FakeGateway


def events(patient_id: str, count: int) -> list[dict[str, Any]]:
    return [{"eventId": f"{patient_id}/{n}", "patientId": patient_id, "type": "observation"} for n in range(count)]


async def test_an_unknown_patient_has_no_events(gateway: FakeGateway) -> None:
    gateway.log = events("a", 2)
    async with GatewayClient(gateway.url, "t") as client:
        assert await count_patients(client, ["a", "b"]) == {"a": {"observation": 2}, "b": {}}


async def test_patients_are_told_as_they_are_read(gateway: FakeGateway) -> None:
    told: list[None] = []
    async with GatewayClient(gateway.url, "t") as client:
        await count_patients(client, ["a", "b", "c"], on_patient=lambda: told.append(None))
    assert len(told) == 3


class Slow:
    """A patient's events show up one by one, each time it is asked for."""

    def __init__(self, final: int) -> None:
        self.final = final
        self.asked = 0

    async def patient(self, patient_id: str) -> dict[str, Any]:
        self.asked += 1
        if self.asked == 1:
            raise Refused(404, {"code": "not-found"})
        return {"counts": {"observation": min(self.asked - 1, self.final)}, "otherTypes": 0}


async def test_counts_are_awaited_and_told_as_they_grow() -> None:
    told: list[int] = []
    await wait_for_counts(Slow(3), {"a": 3}, stall_after=5, on_progress=told.append)
    assert told == [0, 1, 2, 3]


class Many:
    """Many patients whose events all show up after a while."""

    def __init__(self, patients: int, asks: int) -> None:
        self.expected = {f"p{number}": 10 for number in range(patients)}
        self.asks = asks
        self.asked = 0

    async def patient(self, patient_id: str) -> dict[str, Any]:
        self.asked += 1
        return {"counts": {"observation": 10 if self.asked > self.asks else 5}, "otherTypes": 0}


async def test_while_many_patients_are_awaited_only_a_few_are_asked() -> None:
    many = Many(patients=300, asks=30)
    told: list[int] = []
    await wait_for_counts(many, many.expected, stall_after=20, on_progress=told.append)
    assert many.asked < 30 + 300 + 20
    assert told[0] == 1500
    assert told[-1] == 3000


async def test_waiting_ends_when_nothing_changes_any_more() -> None:
    told: list[int] = []
    await wait_for_counts(Slow(2), {"a": 3}, stall_after=0.6, on_progress=told.append)
    assert told[-1] == 2


async def test_events_of_types_without_a_count_of_their_own_are_counted_too() -> None:
    class Odd:
        async def patient(self, patient_id: str) -> dict[str, Any]:
            return {"counts": {"observation": 2}, "otherTypes": 5}

    told: list[int] = []
    await wait_for_counts(Odd(), {"a": 7}, stall_after=1, on_progress=told.append)
    assert told == [7]

"""Every route by role by tenant, with the routes taken from the OpenAPI document."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from carebus_claims.permissions import PERMISSIONS, Sees
from carebus_common.auth import ROLES
from carebus_common.http import openapi

README = Path(__file__).parents[2] / "README.md"


def documented(world: Any) -> dict[str, dict[str, Any]]:
    """The operations of the OpenAPI document, by method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in openapi(world.app)["paths"].items()
        for method, operation in methods.items()
    }


def expected(route: str, role: str, *, same_tenant: bool, own: bool) -> tuple[int, bool]:
    """Status, and whether the answer holds the patient's data, as the table says."""
    sees = PERMISSIONS[route].get(role)
    if sees is None:
        return 403, False
    if not same_tenant or (sees is Sees.OWN and not own):
        return 404, False
    return 200, sees is not Sees.STATUS


async def test_the_table_and_the_document_name_the_same_routes_and_roles(world: Any) -> None:
    operations = documented(world)

    assert set(operations) == set(PERMISSIONS)
    for route, operation in operations.items():
        assert operation["security"] == [{"bearer": sorted(PERMISSIONS[route])}]


@pytest.mark.parametrize("role", sorted(ROLES | {"superuser"}))
@pytest.mark.parametrize("organization", ["org-a", "org-b"])
@pytest.mark.parametrize("own", [True, False])
async def test_every_role_is_answered_as_the_table_says(
    world: Any, events: Any, role: str, organization: str, own: bool
) -> None:
    event = events(data={"secret": "canary"}, type="secret")
    await world.apply([event])
    ids = {"patientId": "patient-1", "eventId": str(event.event_id)}
    who = {"patientId": "patient-1" if own else "patient-2"} if role == "patient" else {}

    for route in documented(world):
        several = route == "GET /patients"
        url = re.sub(r"\{(\w+)\}", lambda match: ids[match[1]], route.removeprefix("GET "))
        url += "?patientId=patient-1" if several else ""
        answer = await world.get(url, organization=organization, roles=[role], **who)

        status, shows_data = expected(route, role, same_tenant=organization == "org-a", own=own)
        status = 200 if several and status == 404 else status
        assert (route, answer.status_code) == (route, status)
        assert ("patient-1" in answer.text) == shows_data


async def test_nobody_reads_anything_without_a_token_or_a_role(world: Any, events: Any) -> None:
    event = events()
    await world.apply([event])

    for url in ("/patients/patient-1", "/patients/patient-1/history", f"/events/{event.event_id}"):
        anonymous = await world.http.get(url)
        assert (anonymous.status_code, anonymous.headers["www-authenticate"]) == (401, "Bearer")
        assert (await world.get(url, roles=[])).status_code == 403


async def test_an_event_sender_learns_the_status_and_nothing_of_the_patient(world: Any, events: Any) -> None:
    event = events(type="admission")
    await world.apply([event])

    answer = await world.get(f"/events/{event.event_id}", roles=["event-sender"])

    assert answer.json() == {
        "data": {
            "eventId": str(event.event_id),
            "status": "processed",
            "type": "admission",
            "ts": "2026-03-01T12:00:00Z",
            "receivedAt": "2026-03-01T12:00:00Z",
            "processedAt": "2026-03-01T12:00:01Z",
            "late": False,
        }
    }


def test_the_readme_prints_the_table() -> None:
    roles = sorted(ROLES)
    lines = [f"| | {' | '.join(roles)} |", "|---" * (len(roles) + 1) + "|"]
    for route, row in PERMISSIONS.items():
        lines.append(f"| `{route}` | {' | '.join(row[r].value if r in row else '403' for r in roles)} |")

    assert "\n".join(lines) in README.read_text()

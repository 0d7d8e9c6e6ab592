"""Every route by role by tenant, with the routes taken from the OpenAPI document."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from carebus_common.auth import ROLES
from carebus_common.http import openapi

PHI_ONLY = {
    "POST /ops/example/dead-letters/{dead_letter_id}/reveal",
    "POST /ops/example/dead-letters/{dead_letter_id}/edit",
}
# What is nobody's but the operations organization's.
OPERATIONS_ONLY = {
    "GET /ops/example/consumer",
    "POST /ops/example/consumer/resume",
    "GET /ops/example/topics/{topic}/tail",
    "GET /ops/example/purges",
    "POST /ops/example/purges",
    "POST /ops/example/purges/{purge_id}/approve",
    "GET /ops/example/audit",
}
OF_ONE_LETTER = {*PHI_ONLY, "GET /ops/example/dead-letters/{dead_letter_id}"}
OTHERS = {
    "GET /ops/example/dead-letters/summary",
    "GET /ops/example/dead-letters",
    "POST /ops/example/dead-letters/redrive",
    "POST /ops/example/dead-letters/discard",
    "GET /ops/example/requests",
    "GET /ops/example/runs/{run}",
}
EVENT_ID = "0198c0de-0000-7000-8000-000000000001"


def documented(world: Any) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in openapi(world.app)["paths"].items()
        for method, operation in methods.items()
    }


async def test_every_route_is_in_the_table_and_documents_its_roles(world: Any) -> None:
    operations = documented(world)

    assert set(operations) == OPERATIONS_ONLY | OF_ONE_LETTER | OTHERS
    for route, operation in operations.items():
        roles = ["operator-phi"] if route in PHI_ONLY else ["operator", "operator-phi"]
        assert operation["security"] == [{"bearer": roles}], route


def expected(route: str, role: str, organization: str) -> int:
    if role not in (("operator-phi",) if route in PHI_ONLY else ("operator", "operator-phi")):
        return 403
    if route in OPERATIONS_ONLY and organization != "carebus":
        return 403
    if route in OF_ONE_LETTER and organization == "org-b":
        return 404
    return 200


@pytest.mark.parametrize("role", sorted(ROLES | {"superuser"}))
@pytest.mark.parametrize("organization", ["carebus", "org-a", "org-b"])
async def test_every_role_is_answered_as_the_table_says(world: Any, kit: Any, role: str, organization: str) -> None:
    letter = kit.dead_letter(eventId=EVENT_ID)
    await world.insert(letter)
    purge = await world.post("/purges", {"reason": "x", "before": "2026-01-01T00:00:00Z"}, sub="somebody")
    ids = {
        "dead_letter_id": letter["_id"],
        "topic": world.topic,
        "purge_id": purge.json()["data"]["id"],
        "run": EVENT_ID,
    }
    bodies = {
        "redrive": {"ids": [letter["_id"]], "reason": "x"},
        "discard": {"ids": [letter["_id"]], "reason": "x"},
        "edit": {"value": msgspec.json.decode(letter["value"]), "reason": "x"},
        "purges": {"before": "2026-01-01T00:00:00Z", "reason": "x"},
        "approve": None,
    }

    for route in documented(world):
        method, path = re.sub(r"\{(\w+)\}", lambda match: ids[match[1]], route).split()
        body = bodies.get(path.rpartition("/")[2], {"reason": "x"}) if method == "POST" else None
        answer = await world.call(
            method, path.removeprefix("/ops/example"), body, organization=organization, roles=[role]
        )

        assert (route, answer.status_code) == (route, expected(route, role, organization)), answer.text
        shows = answer.status_code == 200 and route.endswith("/reveal")
        assert ("Canary" in answer.text) == shows
        if answer.status_code != 200:
            assert "patient" not in answer.text


async def test_nobody_gets_anything_without_a_token(world: Any, kit: Any) -> None:
    await world.insert(kit.dead_letter())

    for route in documented(world):
        method, path = route.replace("{dead_letter_id}", "events-0-0").split()
        assert (await world.http.request(method, path)).status_code == 401, route


async def test_an_organization_of_a_similar_name_is_not_the_operations_organization(world: Any) -> None:
    for organization in ("Carebus", "carebus.", "carebus-2", "org-a"):
        assert (await world.get("/consumer", organization=organization)).status_code == 403
    assert (await world.get("/consumer")).status_code == 200

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from carebus_claims.permissions import PERMISSIONS, Sees, sight
from carebus_claims.repository import HistoryRepository, TenantRequired
from carebus_common.auth import ROLES, Caller
from carebus_common.errors import Forbidden, NotFound

EVENT = "GET /events/{eventId}"
PATIENT = "GET /patients/{patientId}"


def caller(*roles: str, patient_id: str | None = None) -> Caller:
    return Caller("org-a", "someone", frozenset(roles), patient_id, datetime(2027, 1, 1, tzinfo=UTC))


def test_the_table_names_only_roles_that_exist() -> None:
    assert {role for row in PERMISSIONS.values() for role in row} <= ROLES


@pytest.mark.parametrize("route", PERMISSIONS)
@pytest.mark.parametrize("role", ["operator", "operator-phi"])
def test_operators_see_no_patient_data(route: str, role: str) -> None:
    with pytest.raises(Forbidden):
        sight(route, caller(role), "p")


def test_a_patient_sees_itself_and_nobody_else() -> None:
    assert sight(PATIENT, caller("patient", patient_id="p"), "p") is Sees.ALL
    with pytest.raises(NotFound):
        sight(PATIENT, caller("patient", patient_id="p"), "q")


def test_a_patient_token_without_a_patient_sees_nobody() -> None:
    with pytest.raises(NotFound):
        sight(PATIENT, caller("patient"), "p")


def test_several_roles_see_what_any_of_them_sees() -> None:
    assert sight(EVENT, caller("event-sender", "patient", patient_id="q"), "p") is Sees.STATUS
    assert sight(EVENT, caller("event-sender", "patient", patient_id="p"), "p") is Sees.ALL
    assert sight(EVENT, caller("operator", "provider"), "p") is Sees.ALL


@pytest.mark.parametrize("nobody", ["", None])
def test_the_repository_refuses_to_run_without_a_tenant(nobody: str | None) -> None:
    class _Database(dict[str, object]):
        def __missing__(self, name: str) -> object:
            return object()

    with pytest.raises(TenantRequired):
        HistoryRepository(_Database()).for_tenant(nobody)  # type: ignore[arg-type]

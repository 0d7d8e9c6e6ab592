"""`carebus dlq redrive`, `discard`, `edit` and `purge`, put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import typer

from carebus_cli.connection import DEFAULT_STATE_DIR, JsonOption, StateDirOption, TokenOption, UrlOption
from carebus_cli.dlq.doing import act
from carebus_cli.dlq.edit import edit
from carebus_cli.dlq.options import (
    FingerprintOption,
    IdsArgument,
    NoWaitOption,
    OrganizationOption,
    PatientOption,
    RateOption,
    ReasonOption,
    SinceOption,
    TypeOption,
    UntilOption,
    YesOption,
    filters,
    is_patient_id,
)
from carebus_cli.dlq.purge import purge
from carebus_cli.dlq.redrive import Selection
from carebus_cli.ops import ServiceOption, connect_operator

__all__ = ["register"]

# Twice what is asked of a redrive; the owners carry requests out at their own pace.
_RATE: Final = 2000

AllOption = Annotated[bool, typer.Option("--all", help="All open ones, if no filter narrows it.")]


def redrive(
    ids: IdsArgument = None,
    *,
    fingerprint: FingerprintOption = None,
    event_type: TypeOption = None,
    organization: OrganizationOption = None,
    patient: PatientOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    everything: AllOption = False,
    yes: YesOption = False,
    reason: ReasonOption = None,
    rate: RateOption = _RATE,
    no_wait: NoWaitOption = False,
    service: ServiceOption = "processor",
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Have dead letters processed again, in their patients' order; without --yes only tell what would be done.

    Those with the ids, or all open ones that the filters find, and their patients' waiting events after them. Run
    again, it goes on with what is still open. Ends with 1 if some are left out, fail again or are not carried out.
    """
    found = filters(
        fingerprint=fingerprint,
        event_type=event_type,
        organization=organization,
        patient=patient,
        since=since,
        until=until,
    )
    chosen = _choose(ids, found, everything)
    connection = connect_operator(url, token, state_dir, phi=is_patient_id(patient))
    act("redrive", service, connection, chosen, reason, yes=yes, rate=rate, wait=not no_wait, as_json=as_json)


def discard(
    ids: IdsArgument = None,
    *,
    fingerprint: FingerprintOption = None,
    event_type: TypeOption = None,
    organization: OrganizationOption = None,
    patient: PatientOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    everything: AllOption = False,
    yes: YesOption = False,
    reason: ReasonOption = None,
    rate: RateOption = _RATE,
    no_wait: NoWaitOption = False,
    service: ServiceOption = "processor",
    url: UrlOption = None,
    token: TokenOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Give dead letters up for good, so that their patients' waiting events go on without them.

    Without --yes it is only told what would be done. Those with the ids, or all open ones that the filters find.
    """
    found = filters(
        fingerprint=fingerprint,
        event_type=event_type,
        organization=organization,
        patient=patient,
        since=since,
        until=until,
    )
    chosen = _choose(ids, found, everything)
    connection = connect_operator(url, token, state_dir, phi=is_patient_id(patient))
    act("discard", service, connection, chosen, reason, yes=yes, rate=rate, wait=not no_wait, as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add `redrive`, `discard`, `edit` and `purge`."""
    app.command("redrive")(redrive)
    app.command("discard")(discard)
    app.command("edit")(edit)
    app.command("purge")(purge)


def _choose(ids: list[str] | None, found: Mapping[str, str], everything: bool) -> Selection:
    if ids and (found or everything):
        raise typer.BadParameter("either ids or filters", param_hint="ID")
    if not ids and not found and not everything:
        raise typer.BadParameter("name dead letters by their ids or by a filter, or say --all", param_hint="ID")
    return Selection(ids=tuple(dict.fromkeys(ids or ())), filter=found)

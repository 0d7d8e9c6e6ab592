"""The options that the commands on dead letters share, and what they say together."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import typer

from carebus_cli.dlq.times import parse_time, rfc3339

__all__ = [
    "FLAGS",
    "FingerprintOption",
    "IdsArgument",
    "NoWaitOption",
    "OrganizationOption",
    "PatientOption",
    "RateOption",
    "ReasonOption",
    "RevealOption",
    "SinceOption",
    "StatusOption",
    "TypeOption",
    "UntilOption",
    "YesOption",
    "check_reason",
    "filters",
    "is_patient_id",
    "time_option",
]

FingerprintOption = Annotated[str | None, typer.Option("--fingerprint", help="Only failures with this fingerprint.")]
TypeOption = Annotated[str | None, typer.Option("--type", help="Only events of this type.")]
OrganizationOption = Annotated[
    str | None, typer.Option("--organization", "--org-filter", help="Only events of this organization.")
]
PatientOption = Annotated[
    str | None,
    typer.Option("--patient", help="Only this patient: the hash that lists show, or with --organization the id."),
]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="Only from then on: 15m, 2h, 3d (ago), or an RFC 3339 time.")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="Only before then; as --since.")]
StatusOption = Annotated[
    Literal["open", "redriven", "discarded", "all"], typer.Option("--status", help="Only those in this state.")
]
IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Dead letters, by their ids.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Why; it is kept in the audit.")]
RevealOption = Annotated[bool, typer.Option("--reveal", help="Show what is in the event; takes --reason.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it; without, it is only told what would be done.")]
RateOption = Annotated[int, typer.Option("--rate", min=1, help="How many dead letters a second at most.")]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Do not wait until they are carried out.")]

# The option that gives each filter.
FLAGS: Final = {
    "fingerprint": "--fingerprint",
    "type": "--type",
    "organizationId": "--organization",
    "patient": "--patient",
    "since": "--since",
    "until": "--until",
}
_PATIENT_HASH: Final = re.compile(r"[0-9a-f]{16}")


def filters(
    *,
    fingerprint: str | None = None,
    event_type: str | None = None,
    organization: str | None = None,
    patient: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> dict[str, str]:
    """The filters given, by their names in the operations API. Raises BadParameter."""
    if is_patient_id(patient) and organization is None:
        raise typer.BadParameter(
            "a patient's hash, as lists show it, is 16 hexadecimal digits; an id needs --organization too",
            param_hint="--patient",
        )
    given = {
        "fingerprint": fingerprint,
        "type": event_type,
        "organizationId": organization,
        "patient": patient,
        "since": time_option("--since", since),
        "until": time_option("--until", until),
    }
    return {name: value for name, value in given.items() if value is not None}


def is_patient_id(patient: str | None) -> bool:
    """Whether `--patient` names a patient rather than a hash: only those who may see patients may ask so."""
    return patient is not None and not _PATIENT_HASH.fullmatch(patient)


def time_option(flag: str, text: str | None) -> str | None:
    """The time in RFC 3339. Raises BadParameter."""
    if text is None:
        return None
    try:
        return rfc3339(parse_time(text, datetime.now(UTC)))
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None


def check_reason(reason: str | None, what: str) -> str:
    """The reason. Raises BadParameter if there is none although `what` takes one."""
    if reason is None or not reason.strip():
        raise typer.BadParameter(f"{what} takes a reason, for the audit", param_hint="--reason")
    return reason

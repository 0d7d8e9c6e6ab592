"""Dead letters as text: tables, lines and fields. Nothing of a payload is shown but what the answer holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from carebus_cli.meter import plain, stdout
from carebus_cli.tables import Cell, print_fields, print_table

__all__ = [
    "cells",
    "class_name",
    "letter_line",
    "print_letter",
    "print_letters",
    "print_purges",
    "print_skipped",
    "print_summary",
    "say",
    "second",
]

_STATUS_COLOURS = {"open": "red", "redriven": "green", "discarded": "yellow"}


def print_summary(groups: Sequence[Mapping[str, Any]]) -> None:
    """A line per fingerprint."""
    headings = ("FINGERPRINT", "OPEN", "PATIENTS", "REDRIVEN", "DISCARDED", "FIRST", "LAST", "REASON", "ERROR", "WHERE")
    rows = [
        cells(
            group["fingerprint"],
            *(f"{group[name]:,}" for name in ("open", "patients", "redriven", "discarded")),
            second(group["first"]),
            second(group["last"]),
            group["reason"],
            class_name(group["errorClass"]),
            *(group[name] for name in ("where", "example", "message")),
        )
        for group in groups
    ]
    print_table((*headings, "EXAMPLE", "MESSAGE"), rows)


def print_letters(letters: Iterable[Mapping[str, Any]]) -> None:
    """A line per dead letter."""
    headings = ("ID", "STATUS", "REASON", "CREATED", "TYPE", "ORGANIZATION", "PATIENT", "ERROR", "FINGERPRINT")
    rows = []
    for letter in letters:
        row = cells(
            letter["id"],
            letter["status"],
            letter["reason"],
            second(letter["createdAt"]),
            *(letter[name] for name in ("type", "organizationId", "patient")),
            class_name(letter["failure"]["class"]),
            letter["failure"]["fingerprint"],
            letter["redrives"] or "",
            _outcome(letter["outcome"]),
        )
        row[1] = (str(row[1]), _STATUS_COLOURS.get(letter["status"], ""))
        rows.append(row)
    print_table((*headings, "REDRIVES", "OUTCOME"), rows)


def letter_line(letter: Mapping[str, Any]) -> str:
    """One dead letter as a line of its own."""
    failure = letter["failure"]
    words = (
        second(letter["createdAt"]),
        letter["id"],
        letter["reason"],
        letter["type"],
        letter["organizationId"],
        letter["patient"],
        _failed_at({**failure, "class": class_name(failure["class"])}),
        failure["fingerprint"],
    )
    return "  ".join(plain(word) for word in words if word)


def print_letter(letter: Mapping[str, Any], *, revealed: bool) -> None:
    """Everything about one dead letter, its payload last."""
    failure, source = letter["failure"], letter["source"]
    state = f"{letter['status']}{', its patient waits behind it' if _blocks(letter) else ''}"
    first, last = second(failure["firstFailedAt"]), second(failure["lastFailedAt"])
    fields: dict[str, Any] = {
        "id": letter["id"],
        "status": state,
        "reason": letter["reason"],
        "created": second(letter["createdAt"]),
        "event": f"{letter['type'] or 'of no type'}, id {letter['eventId'] or 'unknown'}",
        "organization": letter["organizationId"],
        "patient": letter["patient"],
        "from": f"{source['topic']}, partition {source['partition']}, offset {source['offset']}",
        "error": f"{failure['class']}: {failure['message']}",
        "where": failure["where"],
        "fingerprint": failure["fingerprint"],
        "attempts": f"{letter['attempts']}, first {first}, last {last}",
        "causes": "\n".join(map(_failed_at, letter["causes"])),
        "previous": letter["previous"],
        "redrives": str(letter["redrives"] or ""),
        "edits": "\n".join(map(_edit, letter["edits"])),
        "redriven": _act(letter.get("redrive")),
        "discarded": _act(letter.get("discard")),
        "outcome": _outcome(letter["outcome"]),
        "headers": "\n".join(map(_header, letter["headers"])),
    }
    if revealed:
        fields["patient id"] = letter["patientId"]
        fields["key"] = letter["key"]
        fields["edited"] = letter["edited"]
    fields = {name: value for name, value in fields.items() if value not in (None, "")}
    fields[_payload_name(letter, revealed)] = letter["payload"]
    print_fields(fields)


def print_purges(purges: Sequence[Mapping[str, Any]]) -> None:
    """A line per purge."""
    names = ("id", "status", "before", "deleted", "requestedBy", "approvedBy", "reason")
    rows = [
        cells(*(second(purge[name]) if name == "before" else purge.get(name) for name in names)) for purge in purges
    ]
    print_table(("ID", "STATUS", "BEFORE", "DELETED", "REQUESTED BY", "APPROVED BY", "REASON"), rows)


def cells(*values: object) -> list[Cell]:
    """Values as plain text, nothing for None."""
    return ["" if value is None else plain(value) for value in values]


def second(time: object) -> str:
    """A time of an answer without the fraction of its second."""
    text = "" if time is None else str(time)
    whole, dot, _ = text.partition(".")
    return f"{whole}Z" if dot else text.replace("+00:00", "Z")


def say(count: int, one: str, many: str) -> str:
    """A number with its noun."""
    return f"{count:,} {one if count == 1 else many}"


def print_skipped(skipped: Sequence[Mapping[str, Any]], more: int = 0, shown: int = 20) -> None:
    """Why dead letters were left out, the first ones; `more` are not among them."""
    for one in skipped[:shown]:
        stdout.print(f"  left out: {plain(one['id'])}  {plain(one['why'])}")
    more += max(0, len(skipped) - shown)
    if more:
        stdout.print(f"  and {more:,} more are left out")


def class_name(error_class: str) -> str:
    """An error's class without its module."""
    return error_class.rpartition(".")[2]


def _failed_at(failure: Mapping[str, Any]) -> str:
    return f"{failure['class']} at {failure['where']}" if failure["where"] else str(failure["class"])


def _payload_name(letter: Mapping[str, Any], revealed: bool) -> str:
    if not revealed:
        return "payload, masked"
    return "payload, base64" if letter["payloadEncoding"] == "base64" else "payload"


def _blocks(letter: Mapping[str, Any]) -> bool:
    return bool(letter["blocking"]) and letter["status"] == "open"


def _outcome(outcome: Mapping[str, Any] | None) -> str:
    if not outcome:
        return ""
    again = f" as {outcome['deadLetter']}" if outcome.get("deadLetter") else ""
    return f"{outcome['status']}{again}"


def _act(act: Mapping[str, Any] | None) -> str:
    return f"by {act['by']} at {second(act['at'])}: {act['reason']}" if act else ""


def _edit(edit: Mapping[str, Any]) -> str:
    changes = ", ".join(f"{change['op']} {change['path'] or 'everything'}" for change in edit["diff"])
    return f"by {edit['by']} at {second(edit['at'])}: {edit['reason']} ({changes})"


def _header(header: Mapping[str, Any]) -> str:
    return header["name"] if header["value"] is None else f"{header['name']}: {header['value']}"

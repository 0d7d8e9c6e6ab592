"""What is told of a failure: its class, where it was raised, a message without patient data, a fingerprint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from traceback import extract_tb
from typing import Any, Final

from carebus_common.consumer.change import PatientEvent
from carebus_common.consumer.errors import ConsumerError
from carebus_common.metrics import bounded_type

__all__ = ["Failure", "describe"]

_MESSAGE: Final = 300
_CAUSES: Final = 5
_INSTALLED_AT: Final = re.compile(r"^.*/(?:site-packages|src)/")
# Shorter ones occur in any sentence, and hide nothing of a patient.
_SHORTEST_SCRUBBED: Final = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure. `fingerprint` (12 hexadecimal digits) is the same for failures of one cause: class, place, type.

    `causes` are (class, where) of the error and of what caused it, outermost first.
    """

    error_class: str
    message: str
    where: str
    fingerprint: str
    causes: tuple[tuple[str, str], ...]

    def document(self) -> dict[str, Any]:
        return {
            "class": self.error_class,
            "message": self.message,
            "where": self.where,
            "fingerprint": self.fingerprint,
        }

    def causes_document(self) -> list[dict[str, str]]:
        return [{"class": error_class, "where": where} for error_class, where in self.causes]


def describe(error: BaseException, event: PatientEvent | None, group: str) -> Failure:
    """What may be told of `error`, which the handling of `event` raised.

    Only errors of our own tree keep their message, since any other may quote the event; what the event holds is
    taken out of that too.
    """
    chain = list(_chain(error))
    causes = tuple((_name(link), _where(link)) for link in chain[:_CAUSES])
    error_class, where = causes[0]
    message = _scrubbed(str(error), event)[:_MESSAGE] if isinstance(error, ConsumerError) else ""
    kind = bounded_type(str(getattr(event, "type", ""))) if event is not None else ""
    # The line is left out, so that a deploy which moves code does not make another failure of it.
    parts = (group, kind, *(f"{name}@{place.rpartition(':')[0]}" for name, place in causes))
    fingerprint = blake2b("\n".join(parts).encode(), digest_size=6).hexdigest()
    return Failure(error_class, message, where, fingerprint, causes)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _where(error: BaseException) -> str:
    """`file:function:line` of where it was raised; empty if it never was."""
    frames = extract_tb(error.__traceback__)
    if not frames:
        return ""
    frame = frames[-1]
    return f"{_INSTALLED_AT.sub('', frame.filename)}:{frame.name}:{frame.lineno}"


def _scrubbed(message: str, event: PatientEvent | None) -> str:
    if event is not None:
        values = {event.patient_id, *_texts(getattr(event, "data", None))}
        for value in sorted((v for v in values if len(v) >= _SHORTEST_SCRUBBED), key=len, reverse=True):
            message = message.replace(value, "…")
    return message if message.isprintable() else message.encode("unicode_escape").decode("ascii")


def _texts(value: Any) -> Iterator[str]:
    """Every text and number of a JSON value, as it would stand in a message; keys too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)

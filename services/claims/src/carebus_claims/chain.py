"""The audit's hash chain: one an organization, keyed, each entry bound to the one before it. Pure.

`hash` is HMAC-SHA256 (RFC 2104, FIPS 180-4) over the entry as canonical JSON, which holds the hash before it, under
`CAREBUS_AUDIT_KEY`. Who can write to the store but has no key can neither change nor forge an entry; a cut tail shows
against the organization's head, whose sequence number and hash carry a MAC of their own. What no chain can show by
itself is that all of it was put back to an earlier state, head and all: for that, an anchor (a sequence number and its
hash) is kept elsewhere.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, Literal

__all__ = [
    "EMPTY",
    "ChainCheck",
    "Fault",
    "Head",
    "Link",
    "archived_mac",
    "check_chain",
    "hash_of",
    "head_mac",
    "mac_of",
    "same",
]

# The hash before the first entry.
EMPTY: Final = "0" * 64

# What is no part of what was audited: the hash itself, and when the entry was published.
_OUTSIDE: Final = frozenset({"_id", "hash", "publishedAt"})


@dataclass(frozen=True, slots=True)
class Link:
    """A place in a chain: the entry with this sequence number has this hash; (0, EMPTY) is before the first."""

    seq: int = 0
    hash: str = EMPTY


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry of an organization's chain; `mac` seals the other two."""

    seq: int
    hash: str
    mac: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a chain is broken: at which sequence number, and how.

    missing    entries from here on are not there
    misplaced  an entry that is not where it belongs: inserted, repeated, swapped, of another chain
    altered    an entry whose content is not what was sealed
    head       the head is not there, or was not sealed with this key
    tail       the last entry is not the one that the head names
    anchor     the entry with this number is not the one that the anchor names, or is not there
    """

    seq: int
    kind: Literal["missing", "misplaced", "altered", "head", "tail", "anchor"]


def hash_of(entry: Mapping[str, Any], key: bytes) -> str:
    """The hash of an entry whose `prev` is set; keys sorted, times in milliseconds, which is what the store keeps.

    Raises TypeError for a value that is no part of an entry.
    """
    content = {name: value for name, value in entry.items() if name not in _OUTSIDE}
    return mac_of(content, key)


def mac_of(value: Any, key: bytes) -> str:
    """HMAC-SHA256 of the value as canonical JSON, in hexadecimal. Raises TypeError."""
    return hmac.new(key, _canonical(value), sha256).hexdigest()


def head_mac(organization_id: str, seq: int, last: str, key: bytes) -> str:
    return hmac.new(key, f"head\n{organization_id}\n{seq}\n{last}".encode(), sha256).hexdigest()


def archived_mac(organization_id: str, seq: int, last: str, key: bytes) -> str:
    """Seals how far the entries have been moved to an archive; what is left goes on after it."""
    return hmac.new(key, f"archived\n{organization_id}\n{seq}\n{last}".encode(), sha256).hexdigest()


def same(one: object, other: str) -> bool:
    """Whether a value that somebody may have tampered with is this text, in constant time."""
    return isinstance(one, str) and hmac.compare_digest(one.encode(errors="replace"), other.encode())


class ChainCheck:
    """Checks entries as they come, in the order of `seq`; `after` is where those that were checked before end.

    `at` is the place reached: the last entry that came.
    """

    def __init__(
        self, organization_id: str, key: bytes, *, after: Link | None = None, anchor: Link | None = None
    ) -> None:
        self._organization_id = organization_id
        self._key = key
        self._anchor = anchor
        self.at = after or Link()
        self._anchored = anchor is None or anchor == self.at
        self.count = 0

    def add(self, entry: Mapping[str, Any]) -> list[Fault]:
        """What is wrong with the next entry; nothing: []."""
        faults: list[Fault] = []
        expected, seq, last = self.at.seq + 1, entry.get("seq"), entry.get("hash")
        self.count += 1
        if not isinstance(seq, int) or isinstance(seq, bool):
            faults.append(Fault(expected, "altered"))
            seq = expected
        elif seq != expected:
            faults.append(Fault(expected, "missing") if seq > expected else Fault(seq, "misplaced"))
        elif not same(entry.get("prev"), self.at.hash):
            faults.append(Fault(seq, "misplaced"))
        if not self._genuine(entry):
            faults.append(Fault(seq, "altered"))
        self.at = Link(seq, last if isinstance(last, str) else "")
        if self._anchor is not None and seq == self._anchor.seq:
            self._anchored = same(last, self._anchor.hash)
        return faults

    def end(self, head: Head | None) -> list[Fault]:
        """What is wrong with the end of the chain, after the last entry was added."""
        faults: list[Fault] = []
        if head is None:
            if self.at.seq:
                faults.append(Fault(self.at.seq, "head"))
        else:
            if not same(head.mac, head_mac(self._organization_id, head.seq, head.hash, self._key)):
                faults.append(Fault(head.seq, "head"))
            if (head.seq, head.hash) != (self.at.seq, self.at.hash):
                faults.append(Fault(head.seq, "tail"))
        if not self._anchored and self._anchor is not None:
            faults.append(Fault(self._anchor.seq, "anchor"))
        return faults

    def _genuine(self, entry: Mapping[str, Any]) -> bool:
        if entry.get("organizationId") != self._organization_id:
            return False
        try:
            return same(entry.get("hash"), hash_of(entry, self._key))
        except (TypeError, ValueError):
            return False


def check_chain(
    organization_id: str,
    entries: Iterable[Mapping[str, Any]],
    head: Head | None,
    key: bytes,
    *,
    after: Link | None = None,
    anchor: Link | None = None,
) -> list[Fault]:
    """What is wrong with the entries, which come in the order of `seq`; nothing: []."""
    check = ChainCheck(organization_id, key, after=after, anchor=anchor)
    return [*(fault for entry in entries for fault in check.add(entry)), *check.end(head)]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_tagged).encode()


def _tagged(value: Any) -> dict[str, str]:
    if isinstance(value, datetime):
        # Tagged, so that a time is never taken for the text of one.
        return {"$date": value.astimezone(UTC).isoformat(timespec="milliseconds")}
    raise TypeError(f"{type(value).__name__} is not part of an audit entry")

"""Audit entries in files: what is too old for the store, still one chain with what remains there. Knows no store.

DIR/
  ORGANIZATION/
    000000000001-000000050000.ndjson.gz    one entry a line, in the order of `seq`; times as {"$date": …}
    000000000001-000000050000.json         its manifest: where it begins and ends, and the file's SHA-256, under a MAC

A file is whole once its manifest is there: data, fsync, rename, and then the manifest in the same way. What an
interrupted run leaves is written over by the next.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final, Self

from carebus_claims.chain import ChainCheck, Fault, Link, mac_of, same

__all__ = [
    "Archive",
    "ArchiveFault",
    "ArchiveWriter",
    "BrokenChain",
    "Manifest",
    "manifests",
    "organizations_in",
    "read_entries",
    "verify_archive",
]

Entry = Mapping[str, Any]

_FORMAT: Final = "carebus-audit-archive/1"


class BrokenChain(Exception):
    """Entries that are no whole chain are not moved: they are evidence where they are."""

    def __init__(self, organization_id: str, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__(f"the chain of {organization_id} is broken at {faults[0].seq}: {faults[0].kind}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a file holds: the entries after `after`, up to and with `last`, whose times are from `since` to `until`."""

    organization_id: str
    after: Link
    last: Link
    since: datetime
    until: datetime
    file: str
    sha256: str
    mac: str = ""

    @property
    def entries(self) -> int:
        return self.last.seq - self.after.seq

    def content(self) -> dict[str, Any]:
        """What the MAC seals."""
        return {
            "format": _FORMAT,
            "organizationId": self.organization_id,
            "after": {"seq": self.after.seq, "hash": self.after.hash},
            "last": {"seq": self.last.seq, "hash": self.last.hash},
            "entries": self.entries,
            "since": self.since.astimezone(UTC).isoformat(timespec="milliseconds"),
            "until": self.until.astimezone(UTC).isoformat(timespec="milliseconds"),
            "file": self.file,
            "sha256": self.sha256,
        }

    def genuine(self, key: bytes) -> bool:
        return same(self.mac, mac_of(self.content(), key))


@dataclass(frozen=True, slots=True)
class ArchiveFault:
    """What is wrong with a file of an archive, and of which entry if it is one."""

    file: str
    kind: str
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Archive:
    """What verifying found: the place at which the archived entries end, how many there are, and what is wrong."""

    at: Link
    entries: int
    faults: list[ArchiveFault]


class ArchiveWriter:
    """Writes the entries of one file; a context manager, which leaves nothing that counts if it is left by an error.

    Blocks. Raises OSError, and BrokenChain as soon as an entry does not follow the one before.
    """

    def __init__(self, directory: Path, organization_id: str, key: bytes, after: Link) -> None:
        self._folder = directory / organization_id
        self._organization_id = organization_id
        self._key = key
        self._after = after
        self._check = ChainCheck(organization_id, key, after=after)
        self._since = self._until = datetime.fromtimestamp(0, UTC)
        self._scratch = self._folder / f"after-{after.seq:012d}.part"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._raw: IO[bytes] = self._scratch.open("wb")
        # Neither a name nor a time inside, so that the same entries make the same file.
        self._zipped = gzip.GzipFile(filename="", mode="wb", fileobj=self._raw, mtime=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._zipped.close()
        self._raw.close()
        self._scratch.unlink(missing_ok=True)

    @property
    def count(self) -> int:
        return self._check.count

    @property
    def at(self) -> Link:
        """The last entry that was added."""
        return self._check.at

    def add(self, entry: Entry) -> None:
        if faults := self._check.add(entry):
            raise BrokenChain(self._organization_id, faults)
        at = entry["at"]
        self._since, self._until = (at, at) if self.count == 1 else (min(self._since, at), max(self._until, at))
        self._zipped.write(_line(entry))

    def finish(self) -> Manifest:
        """Make it last: file, then manifest; what was written is read back first."""
        last = self._check.at
        name = f"{self._after.seq + 1:012d}-{last.seq:012d}"
        self._zipped.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        self._raw.close()
        made = Manifest(
            organization_id=self._organization_id,
            after=self._after,
            last=last,
            since=self._since,
            until=self._until,
            file=f"{name}.ndjson.gz",
            sha256=_sha256(self._scratch),
        )
        sealed = replace(made, mac=mac_of(made.content(), self._key))
        if faults := _check_file(self._scratch, sealed, self._key):
            raise OSError(f"{self._scratch} reads back as {faults[0].kind}")
        self._scratch.replace(self._folder / made.file)
        _sync_folder(self._folder)
        scratch = self._folder / f"{name}.json.part"
        with scratch.open("w") as file:
            json.dump({**sealed.content(), "mac": sealed.mac}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self._folder / f"{name}.json")
        _sync_folder(self._folder)
        return sealed


def organizations_in(directory: Path) -> list[str]:
    """The organizations that have an archive there."""
    return sorted(path.name for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []


def manifests(directory: Path, organization_id: str) -> tuple[list[Manifest], list[ArchiveFault]]:
    """An organization's manifests in the order of their entries, and the files that are none. Blocks."""
    found: list[Manifest] = []
    faults: list[ArchiveFault] = []
    folder = directory / organization_id
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            found.append(_manifest(json.loads(path.read_text())))
        except (OSError, ValueError, KeyError, TypeError):
            faults.append(ArchiveFault(path.name, "unreadable"))
    return sorted(found, key=lambda one: one.after.seq), faults


def verify_archive(directory: Path, organization_id: str, key: bytes) -> Archive:
    """Check every manifest and every entry of an organization's archive. Blocks.

    Faults: `unreadable` (no manifest), `manifest` (not sealed with this key), `gap` (entries between two files are not
    there), `file` (missing, or not of that SHA-256), and those of the chain.
    """
    at, count = Link(), 0
    found, faults = manifests(directory, organization_id)
    for one in found:
        if one.organization_id != organization_id or not one.genuine(key):
            faults.append(ArchiveFault(one.file, "manifest"))
        if one.after != at:
            faults.append(ArchiveFault(one.file, "gap", at.seq + 1))
        faults += _check_file(directory / organization_id / Path(one.file).name, one, key)
        at, count = one.last, count + one.entries
    return Archive(at, count, faults)


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file as they were in the store. Raises OSError, ValueError. Blocks."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line, object_hook=_untagged)


def _check_file(path: Path, manifest: Manifest, key: bytes) -> list[ArchiveFault]:
    try:
        if _sha256(path) != manifest.sha256:
            return [ArchiveFault(manifest.file, "file")]
        check = ChainCheck(manifest.organization_id, key, after=manifest.after)
        faults = [fault for entry in read_entries(path) for fault in check.add(entry)]
    except (OSError, EOFError, ValueError, AttributeError, zlib.error):
        return [ArchiveFault(manifest.file, "file")]
    found = [ArchiveFault(manifest.file, fault.kind, fault.seq) for fault in faults]
    if check.at != manifest.last:
        found.append(ArchiveFault(manifest.file, "tail", manifest.last.seq))
    return found


def _manifest(held: Mapping[str, Any]) -> Manifest:
    if held["format"] != _FORMAT:
        raise ValueError("another format")
    return Manifest(
        organization_id=held["organizationId"],
        after=Link(**held["after"]),
        last=Link(**held["last"]),
        since=datetime.fromisoformat(held["since"]),
        until=datetime.fromisoformat(held["until"]),
        file=str(held["file"]),
        sha256=held["sha256"],
        mac=held["mac"],
    )


def _line(entry: Entry) -> bytes:
    kept = {name: value for name, value in entry.items() if name != "_id"}
    return json.dumps(kept, ensure_ascii=True, separators=(",", ":"), default=_tagged).encode() + b"\n"


def _tagged(value: Any) -> dict[str, str]:
    if isinstance(value, datetime):
        return {"$date": value.astimezone(UTC).isoformat(timespec="milliseconds")}
    raise TypeError(f"{type(value).__name__} is not part of an audit entry")


def _untagged(value: dict[str, Any]) -> Any:
    return datetime.fromisoformat(value["$date"]) if value.keys() == {"$date"} else value


def _sha256(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1024 * 1024):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """A rename is only sure to be there after a power failure once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Files of audit entries: one chain with what remains, and no tampering with them goes unseen."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from carebus_claims.archive import ArchiveWriter, BrokenChain, manifests, organizations_in, read_entries, verify_archive
from carebus_claims.chain import EMPTY, Head, Link, check_chain, hash_of, head_mac

KEY = b"the key of the audit"
ORG = "north-hospital"
NOW = datetime(2026, 11, 25, 8, tzinfo=UTC)


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for seq in range(1, 31):
        entry = {
            "_id": f"{ORG}/{seq:012d}",
            "organizationId": ORG,
            "seq": seq,
            "at": NOW + timedelta(hours=seq),
            "claimId": "c-1",
            "before": None,
            "after": {"total": "12.50", "note": "Ölkännchen\u2028"},
            "prev": made[-1]["hash"] if made else EMPTY,
            "publishedAt": NOW,
        }
        entry["hash"] = hash_of(entry, KEY)
        made.append(entry)
    return made


def archive(directory: Path, entries: list[dict[str, Any]], after: Link | None = None) -> Link:
    with ArchiveWriter(directory, ORG, KEY, after or Link()) as writer:
        for entry in entries:
            writer.add(entry)
        return writer.finish().last


@pytest.fixture
def archived(tmp_path: Path, entries: list[dict[str, Any]]) -> Path:
    """Two files, of entries 1 to 10 and 11 to 20."""
    archive(tmp_path, entries[10:20], archive(tmp_path, entries[:10]))
    return tmp_path


def file_of(directory: Path, name: str) -> Path:
    return directory / ORG / name


FIRST, SECOND = "000000000001-000000000010", "000000000011-000000000020"


def test_an_archive_reads_back_as_the_entries_that_went_in(archived: Path, entries: list[dict[str, Any]]) -> None:
    read = [
        *read_entries(file_of(archived, f"{FIRST}.ndjson.gz")),
        *read_entries(file_of(archived, f"{SECOND}.ndjson.gz")),
    ]
    assert read == [{name: value for name, value in entry.items() if name != "_id"} for entry in entries[:20]]
    assert organizations_in(archived) == [ORG]


def test_an_archive_and_what_remains_are_one_chain(archived: Path, entries: list[dict[str, Any]]) -> None:
    found = verify_archive(archived, ORG, KEY)
    assert (found.faults, found.entries, found.at) == ([], 20, Link(20, entries[19]["hash"]))
    head = Head(30, entries[29]["hash"], head_mac(ORG, 30, entries[29]["hash"], KEY))
    assert check_chain(ORG, entries[20:], head, KEY, after=found.at) == []
    assert check_chain(ORG, entries[21:], head, KEY, after=found.at) != []


def test_a_manifest_says_what_the_file_holds(archived: Path, entries: list[dict[str, Any]]) -> None:
    (first, second), faults = manifests(archived, ORG)
    assert faults == []
    assert (first.entries, first.after, first.last) == (10, Link(), Link(10, entries[9]["hash"]))
    assert (second.since, second.until) == (entries[10]["at"], entries[19]["at"])
    assert first.genuine(KEY)
    assert not first.genuine(b"another key")


def rewrite(directory: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the entries of the first file."""
    path = file_of(directory, f"{FIRST}.ndjson.gz")
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    change(lines)
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))


def edit_manifest(directory: Path, **fields: Any) -> None:
    path = file_of(directory, f"{FIRST}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("tamper", "kind"),
    [
        (lambda where: file_of(where, f"{FIRST}.ndjson.gz").unlink(), "file"),
        (lambda where: rewrite(where, lambda lines: lines[3].update(claimId="c-2")), "file"),
        (lambda where: rewrite(where, lambda lines: lines.pop()), "file"),
        (lambda where: file_of(where, f"{FIRST}.json").unlink(), "gap"),
        (lambda where: file_of(where, f"{FIRST}.json").write_text("{"), "unreadable"),
        (lambda where: edit_manifest(where, sha256="0" * 64), "manifest"),
        (lambda where: edit_manifest(where, last={"seq": 9, "hash": "0"}), "manifest"),
        (lambda where: edit_manifest(where, organizationId="south-hospital"), "manifest"),
        (lambda where: edit_manifest(where, file="../../etc/passwd"), "manifest"),
    ],
)
def test_whatever_is_done_to_an_archive_is_found(archived: Path, tamper: Callable[[Path], None], kind: str) -> None:
    tamper(archived)
    assert kind in {fault.kind for fault in verify_archive(archived, ORG, KEY).faults}


def test_a_change_with_its_digest_put_right_is_found_in_the_manifest_and_in_the_chain(archived: Path) -> None:
    rewrite(archived, lambda lines: lines[3].update(claimId="c-2"))
    data = file_of(archived, f"{FIRST}.ndjson.gz").read_bytes()
    edit_manifest(archived, sha256=sha256(data).hexdigest())
    faults = verify_archive(archived, ORG, KEY).faults
    assert [(fault.kind, fault.seq) for fault in faults] == [("manifest", None), ("altered", 4)]


def test_a_last_file_that_is_gone_shows_against_what_remains(archived: Path, entries: list[dict[str, Any]]) -> None:
    file_of(archived, f"{SECOND}.json").unlink()
    found = verify_archive(archived, ORG, KEY)
    assert (found.faults, found.at.seq) == ([], 10)
    head = Head(30, entries[29]["hash"], head_mac(ORG, 30, entries[29]["hash"], KEY))
    assert [fault.kind for fault in check_chain(ORG, entries[20:], head, KEY, after=found.at)] == ["missing"]


def test_a_chain_that_is_broken_is_not_archived(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    with pytest.raises(BrokenChain, match="broken at 4: missing"):
        archive(tmp_path, [*entries[:3], *entries[4:10]])
    assert list((tmp_path / ORG).iterdir()) == []


def test_a_file_without_its_manifest_does_not_count_and_is_written_again(
    tmp_path: Path, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the two."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(json, "dump", killed)
        archive(tmp_path, entries[:10])
    assert file_of(tmp_path, f"{FIRST}.ndjson.gz").exists()
    assert verify_archive(tmp_path, ORG, KEY).at == Link()
    last = archive(tmp_path, entries[:10])
    found = verify_archive(tmp_path, ORG, KEY)
    assert (found.faults, found.at) == ([], last)


def test_the_same_entries_make_the_same_file(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    for name in ("a", "b"):
        archive(tmp_path / name, entries[:10])
    one, other = (file_of(tmp_path / name, f"{FIRST}.ndjson.gz").read_bytes() for name in ("a", "b"))
    assert one == other


def test_a_disk_that_gives_back_other_bytes_keeps_the_manifest_from_being_written(
    tmp_path: Path, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad_sync(handle: int) -> None:
        os.pwrite(handle, b"\0\0\0\0", 20) if os.fstat(handle).st_size > 40 else None

    monkeypatch.setattr(os, "fsync", bad_sync)
    with pytest.raises(OSError, match="reads back as"):
        archive(tmp_path, entries[:10])
    assert manifests(tmp_path, ORG) == ([], [])


def test_nothing_is_archived_where_nothing_is(tmp_path: Path) -> None:
    assert organizations_in(tmp_path / "nowhere") == []
    assert verify_archive(tmp_path / "nowhere", ORG, KEY).at == Link()

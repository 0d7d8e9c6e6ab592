from __future__ import annotations

import sys
from pathlib import Path

import pytest

from carebus_local import store
from carebus_local.errors import LocalError


def installed(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("on_path", "chosen", "options"),
    [
        (("mongod", "secantusd-rs", "secantusd-py"), "mongod", "replicaSet=rs0"),
        (("secantusd-rs", "secantusd-py"), "secantusd-rs", "directConnection=true"),
        (("secantusd-py",), "secantusd-py", "replicaSet=secantus"),
    ],
)
def test_a_mongod_is_preferred_and_then_the_native_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: tuple[str, ...], chosen: str, options: str
) -> None:
    installed(tmp_path, *on_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    program = store.program(tmp_path / "state", 27017)
    assert program.command[0] == str(tmp_path / chosen)
    assert program.url == store.url(27017) == f"mongodb://127.0.0.1:27017/?{options}"
    assert "27017" in program.command
    assert ("--replSet" in program.command) == (chosen == "mongod")
    assert ("--sync-on-commit" in program.command) == (chosen == "secantusd-rs")


def test_a_machine_without_a_store_is_told_what_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(LocalError, match="CAREBUS_MONGO_URL"):
        store.program(tmp_path, 27017)

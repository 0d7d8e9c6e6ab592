from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from carebus_local.errors import PortTaken
from carebus_local.ports import Ports, hold


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    ports = Ports(tmp_path)
    yield ports
    ports.release()


def listener(port: int, *options: int) -> socket.socket:
    """A listening socket as a child opens it, with these socket options."""
    opened = socket.socket()
    try:
        for option in options:
            opened.setsockopt(socket.SOL_SOCKET, option, 1)
        opened.bind(("127.0.0.1", port))
        opened.listen()
    except OSError:
        opened.close()
        raise
    return opened


def test_a_held_port_is_refused_to_another_supervisor(ports: Ports, tmp_path: Path) -> None:
    port = ports.reserve("kafka")
    held_by_another = subprocess.run(
        [sys.executable, "-c", f"from carebus_local.ports import hold; print(hold({port}) is not None)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert held_by_another == "False"


def test_two_state_directories_that_prefer_the_same_port_get_different_ones(ports: Ports, tmp_path: Path) -> None:
    other = Ports(tmp_path / "other")
    try:
        first = ports.reserve("gateway", preferred=ports.reserve("probe") + 1)
        assert other.reserve("gateway", preferred=first) != first
    finally:
        other.release()


def test_a_child_that_sets_so_reuseaddr_listens_on_the_held_port_and_again_after_it_died(ports: Ports) -> None:
    port = ports.reserve("valkey")
    for _ in range(2):
        with contextlib.closing(listener(port, socket.SO_REUSEADDR)), socket.create_connection(("127.0.0.1", port)):
            pass


def test_replicas_share_the_held_port(ports: Ports) -> None:
    port = ports.reserve("ingest")
    options = (socket.SO_REUSEADDR, socket.SO_REUSEPORT)
    with contextlib.closing(listener(port, *options)), contextlib.closing(listener(port, *options)):
        pass


def test_a_foreign_program_is_not_given_the_held_port(ports: Ports) -> None:
    port = ports.reserve("store")
    with pytest.raises(OSError, match="in use"):
        listener(port)


def test_nobody_answers_on_a_held_port_before_its_child(ports: Ports) -> None:
    port = ports.reserve("store")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


@pytest.mark.parametrize("options", [(), (socket.SO_REUSEADDR,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)])
def test_a_port_somebody_listens_on_is_not_held_however_it_was_opened(ports: Ports, options: tuple[int, ...]) -> None:
    with contextlib.closing(listener(0, *options)) as taken:
        assert hold(taken.getsockname()[1]) is None


def test_a_port_with_lingering_connections_of_the_last_run_is_held_again(tmp_path: Path) -> None:
    first = Ports(tmp_path)
    port = first.reserve("gateway")
    with contextlib.closing(listener(port, socket.SO_REUSEADDR)) as server:
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # The side that closes first keeps the connection in TIME_WAIT.
        client.close()
    first.release()
    second = Ports(tmp_path)
    try:
        assert second.reserve("gateway") == port
    finally:
        second.release()


def test_a_restart_keeps_the_ports(tmp_path: Path) -> None:
    first = Ports(tmp_path)
    chosen = {name: first.reserve(name) for name in ("kafka", "store")}
    first.release()
    second = Ports(tmp_path)
    try:
        assert {name: second.reserve(name) for name in chosen} == chosen
    finally:
        second.release()


def test_a_configured_port_that_is_taken_is_an_error_that_names_it(tmp_path: Path) -> None:
    with contextlib.closing(listener(0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"gateway is configured for port {port}"):
            Ports(tmp_path, {"gateway": port}).reserve("gateway")

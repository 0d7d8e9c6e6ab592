"""PyMongo's asyncio API against Motor: see README.md beside this file.

    .venv/bin/python bench/mongo_driver/run.py [ROUNDS]

Motor goes into a virtual environment of its own in a temporary directory, so the project never depends on it.
Both drivers run in that one, on the same PyMongo, in turns, a new process each time.
"""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).parent
DRIVERS = ("pymongo", "motor")

Figures = dict[str, dict[str, float]]


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="mongo-driver-") as scratch:
        python = Path(scratch, "venv/bin/python")
        venv.create(python.parents[1], with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "pymongo", "motor", "uvloop"], check=True)
        versions = subprocess.run(
            [python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True
        ).stdout.split()
        print(f"Python {platform.python_version()}, {', '.join(versions)}; the best of {rounds} rounds")
        port = free_port()
        embedded = Path(sys.executable).with_name("secantusd-py")
        servers: dict[str, tuple[int, list[str | Path]]] = {
            "A server that answers at once": (1500, [python, HERE / "stand_in.py", str(port), "0"]),
            "A server that answers after 10 ms": (300, [python, HERE / "stand_in.py", str(port), "10"]),
            "The embedded store": (200, [embedded, "--port", str(port), "--storage-path", f"{scratch}/data"]),
        }
        for name, (calls, command) in servers.items():
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                wait_for(port)
                results = measure(python, port, calls, rounds)
            finally:
                server.terminate()
                server.wait()
            report(name, results)


def measure(python: Path, port: int, calls: int, rounds: int) -> dict[str, list[Figures]]:
    results: dict[str, list[Figures]] = {driver: [] for driver in DRIVERS}
    for turn in range(rounds * len(DRIVERS)):
        # Turns, and the first one changes: neither driver always comes after the other.
        driver = DRIVERS[(turn + turn // len(DRIVERS)) % len(DRIVERS)]
        print(f"round {turn // len(DRIVERS) + 1} of {rounds}: {driver}", file=sys.stderr)
        url = f"mongodb://127.0.0.1:{port}/?directConnection=true"
        done = subprocess.run(
            [python, HERE / "measure.py", driver, url, str(calls)], check=True, capture_output=True, text=True
        )
        results[driver].append(json.loads(done.stdout))
    return results


def report(name: str, results: dict[str, list[Figures]]) -> None:
    print(f"\n{name}:\n")
    print("| operation | PyMongo asyncio | Motor | ratio | client CPU: PyMongo | Motor | ratio |")
    print("|---|---|---|---|---|---|---|")
    for operation in results["pymongo"][0]:
        # The best, as what else runs on the machine only ever slows a round down.
        rate, cpu = (
            {driver: best(result[operation][figure] for result in results[driver]) for driver in DRIVERS}
            for figure, best in (("perSecond", max), ("clientCpuMicros", min))
        )
        print(
            f"| {operation} | {rate['pymongo']:,.0f}/s | {rate['motor']:,.0f}/s"
            f" | {rate['pymongo'] / rate['motor']:.2f} | {cpu['pymongo']:.0f} µs | {cpu['motor']:.0f} µs"
            f" | {cpu['motor'] / cpu['pymongo']:.2f} |"
        )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)

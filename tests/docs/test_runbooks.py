"""Each runbook of docs/operations.md: its symptom is brought about, seen as the page says, and ended by its commands.

One system serves all of them, with the processor of `tests/chaos`, whose handler fails as the events say.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from carebus_local import store
from carebus_local.logs import log_path
from carebus_local.services import SERVICES, Service
from carebus_local.system import System, running
from carebus_local.testing import random_name

from .runbook import ROOT, Runbook, sections

PAGE = ROOT / "docs/operations.md"
SECTIONS = sections(PAGE)
BIN = Path(sys.executable).parent
PARKED_LIMIT = 30

PARKED = "A patient is parked, dead letters grow"
STOPPED = "The consumer stopped itself"
LAG = "Consumer lag grows"
BROKER = "The broker is away"
STORE = "The store is away"
DISK = "A disk is full"
FULL = "Too many events are parked"
CRASH = "An event kills the process"
ONE = "Look at one, mend it, give it up"
PURGE = "Delete old ones"

pytestmark = pytest.mark.timeout(180)


@dataclass
class Ward:
    """The running system; events of an organization of its own, and what one sees of what becomes of them."""

    system: System
    home: Path
    http: httpx.AsyncClient
    variables: Path
    organization: str = field(default_factory=lambda: random_name("ward"))
    clock: datetime = field(default_factory=lambda: datetime.now(UTC))

    def runbook(self, title: str) -> Runbook:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CAREBUS_")},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "CAREBUS_STATE_DIR": str(self.system.state_dir),
            "EDITOR": "sed -i s/permanent/nothing/",
        }
        self.variables.write_text("")
        return Runbook(SECTIONS[title], environment, self.variables)

    def solve(self) -> None:
        """Solve the problem of this organization's events: from now on they succeed."""
        (self.home / f"fixed-{self.organization}").touch()

    def event(self, patient: str, **data: Any) -> dict[str, Any]:
        self.clock += timedelta(milliseconds=1)
        kind = "chaos" if data else "note"
        return {"eventId": str(uuid4()), "patientId": patient, "type": kind, "ts": self.clock.isoformat(), "data": data}

    async def post(self, *events: dict[str, Any]) -> list[str]:
        """Post them as a batch; the ids their dead letters would have."""
        answer = await self._post("/events/batch", list(events))
        assert answer.status_code == 202, answer.text
        return [f"medical.events.v1-{one['partition']}-{one['offset']}" for one in answer.json()["data"]]

    async def post_one(self, event: dict[str, Any]) -> httpx.Response:
        return await self._post("/events", event)

    async def _post(self, path: str, body: Any) -> httpx.Response:
        token = self.system.token(self.organization, ["event-sender"])
        headers = {"Authorization": f"Bearer {token}"}
        return await self.http.post(f"{self.system.urls['gateway']}{path}", json=body, headers=headers)

    async def applied(self, patient: str, count: int, *, within: float = 45, or_more: bool = False) -> None:
        """Wait until so many of the patient's events have had their effect."""
        headers = {"Authorization": f"Bearer {self.system.token(self.organization, ['admin'])}"}

        async def there() -> bool:
            answer = await self.http.get(f"{self.system.urls['gateway']}/patients/{patient}", headers=headers)
            if answer.status_code != 200:
                return False
            total = answer.json()["data"]["eventTotal"]
            return bool(total >= count if or_more else total == count)

        await eventually(there, within=within, what=f"{count} events of {patient} are applied")

    async def health(self, name: str = "processor") -> str:
        """What a service says: "ok", or the reasons; nothing while it does not answer."""
        try:
            answer = await self.http.get(f"{self.system.urls[name]}/health")
        except httpx.HTTPError:
            return ""
        if answer.status_code == 200:
            return "ok"
        return ", ".join(f"{detail['path']}: {detail['rule']}" for detail in answer.json()["error"]["details"])

    async def until_health(self, wanted: str, name: str = "processor", *, within: float = 30) -> None:
        async def so() -> bool:
            return wanted in await self.health(name)

        await eventually(so, within=within, what=f"{name} says {wanted!r}")

    async def metric(self, sample: str, name: str = "processor") -> float:
        """The sum of a metric's samples that begin so, from the management port."""
        port = re.findall(r'"management_port": (\d+)', self.log(name))[-1]
        text = (await self.http.get(f"http://127.0.0.1:{port}/metrics")).text
        found = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(sample)]
        # One that no label was given to yet says nothing, as far as its name goes.
        assert found or f"# TYPE {re.split('{', sample)[0]} " in text, f"no metric {sample}"
        return sum(found)

    async def until_metric(
        self, sample: str, holds: Callable[[float], bool], name: str = "processor", *, within: float = 15
    ) -> None:
        async def so() -> bool:
            return holds(await self.metric(sample, name))

        await eventually(so, within=within, what=f"{sample} of {name}")

    async def dead_letters(self) -> int:
        """How many there are in all, whatever became of them."""
        token = self.system.token("carebus", ["operator"])
        answer = await self.http.get(
            f"{self.system.urls['gateway']}/ops/processor/dead-letters/summary",
            headers={"Authorization": f"Bearer {token}"},
        )
        return sum(one["open"] + one["redriven"] + one["discarded"] for one in answer.json()["data"])

    def log(self, name: str = "processor") -> str:
        return log_path(self.system.state_dir, name).read_text(errors="replace")

    def slugs(self, name: str = "processor") -> set[str]:
        return set(re.findall(r'"event": "([a-z-]+)"', self.log(name)))


async def eventually(check: Callable[[], Awaitable[bool]], *, within: float, what: str) -> None:
    try:
        async with asyncio.timeout(within):
            while not await check():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {within:g} s: {what}") from None


@dataclass(frozen=True)
class Disks:
    """Where the broker's and the store's data are: small file systems of their own, if one may mount them here."""

    mounted: bool
    broker: Path
    store: Path


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    state_dir = tmp_path_factory.mktemp("runbooks")
    broker, store_home = state_dir / "kafka", state_dir / Path(store.find()).name
    mounted: list[Path] = []
    try:
        for path in (broker, store_home):
            path.mkdir()
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", path], capture_output=True, check=False
            )
            if done.returncode == 0:
                mounted.append(path)
        yield Disks(len(mounted) == 2, broker, store_home)
    finally:
        for path in mounted:
            subprocess.run(["umount", "--lazy", path], check=False)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def system(disks: Disks) -> AsyncIterator[System]:
    state_dir = disks.broker.parent
    home = state_dir / "chaos"
    home.mkdir()
    env = {
        "CHAOS_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "CAREBUS_ENVIRONMENT": "test",
        "CAREBUS_CRASH_LIMIT": "1",
        "CAREBUS_RETRY_BASE": "PT0.2S",
        "CAREBUS_PARKED_EVENTS_LIMIT": str(PARKED_LIMIT),
    }

    def failing(service: Service) -> Service:
        command = (sys.executable, "-m", "tests.chaos.processor") if service.name == "processor" else service.command
        return replace(service, command=command, env={**service.env, **env})

    async with running(state_dir, log_format="json", service_list=map(failing, SERVICES)) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="session")
async def ward(system: System, tmp_path: Path) -> AsyncIterator[Ward]:
    async with httpx.AsyncClient(timeout=15) as http:
        yield Ward(system, system.state_dir / "chaos", http, tmp_path / "variables")


FINGERPRINT = {"b647df94b552": r"^([0-9a-f]{12})  [1-9]"}


async def test_from_an_alert_to_redriven_patients_it_takes_three_commands(ward: Ward) -> None:
    runbook = ward.runbook(PARKED)
    assert [step.command.split()[:3] for step in runbook.steps] == [
        ["carebus", "dlq", "summary"],
        ["carebus", "dlq", "redrive"],
        ["carebus", "dlq", "redrive"],
    ]
    for patient in ("p1", "p2", "p3"):
        await ward.post(ward.event(patient, fail="permanent"), ward.event(patient), ward.event(patient))
    await ward.post(ward.event("p4"), ward.event("p4", fail="transient", times=1))
    await ward.applied("p4", 2)  # everybody else flows, and a retry works by itself
    assert await ward.health() == "ok"
    assert {"event-failed", "event-dead-lettered"} <= ward.slugs()
    assert await ward.metric('carebus_dead_letters_total{group="carebus-processor",reason="permanent"}') == 3
    await runbook.follow(learn=FINGERPRINT)
    ward.solve()
    await runbook.follow()
    await runbook.follow()
    for patient in ("p1", "p2", "p3"):
        await ward.applied(patient, 3)


async def test_one_dead_letter_is_looked_at_mended_and_given_up(ward: Ward) -> None:
    runbook = ward.runbook(ONE)
    (given_up, *_) = await ward.post(ward.event("p1", fail="permanent"), ward.event("p1"))
    await eventually(lambda: dead_lettered(ward, given_up), within=10, what="the first dead letter")
    (mended, *_) = await ward.post(ward.event("p2", fail="permanent"), ward.event("p2"))
    runbook.names = {"medical.events.v1-3-1042": mended, "medical.events.v1-5-7": given_up}
    await runbook.follow()
    assert "permanent" in await runbook.follow()
    await runbook.follow()
    await ward.applied("p2", 2)
    await runbook.follow()
    await ward.applied("p1", 1)


async def dead_lettered(ward: Ward, letter: str) -> bool:
    return f'"dead_letter": "{letter}"' in ward.log()


async def test_what_is_settled_is_purged_by_two_operators(ward: Ward) -> None:
    runbook = ward.runbook(PURGE)
    await runbook.follow(learn={"0198a2c4-0000-7000-8000-000000000000": r"^Asked for as (\S+);"})
    approval = runbook.steps[2].command
    alone = Runbook([replace(runbook.steps[2], output="")], runbook.environment, runbook.variables, runbook.names)
    assert "somebody else" in await alone.follow(code=1), f"{approval}: nobody approves what they asked for"
    await runbook.follow()
    await runbook.follow()


async def test_a_consumer_that_stopped_itself_is_resumed_after_the_fix(ward: Ward) -> None:
    runbook = ward.runbook(STOPPED)
    patients = [f"p{number}" for number in range(108)]
    await ward.post(*(ward.event(patient, fail="permanent") for patient in patients))
    await ward.until_health("stopped: ")
    assert re.search(r"stopped: \d+ events in a row failed; after the fix, ", await ward.health())
    assert "consumer-stopped" in ward.slugs()
    await ward.until_metric('carebus_consumer_paused{group="carebus-processor",reason="failures"}', bool)
    await ward.post(ward.event("bystander"))  # accepted, though nothing is consumed
    await runbook.follow()
    await runbook.follow(learn=FINGERPRINT)
    ward.solve()
    await runbook.follow()
    await runbook.follow()
    await ward.until_health("ok")
    await ward.applied("bystander", 1)
    for patient in (patients[0], patients[-1]):
        await ward.applied(patient, 1)


async def test_lag_is_seen_by_partition(ward: Ward) -> None:
    runbook = ward.runbook(LAG)
    sent = 0

    async def send_faster_than_it_is_handled() -> None:
        nonlocal sent
        while True:
            await ward.post(ward.event("p1", slow=0.8))
            sent += 1
            await asyncio.sleep(0.6)

    sending = asyncio.create_task(send_faster_than_it_is_handled())
    try:
        await ward.until_metric("carebus_consumer_lag_records", lambda lag: lag >= 1)
        printed = await runbook.follow()
        assert re.search(r"^processor  medical\.events\.v1 .* [1-9]\d*$", printed, re.MULTILINE)
        assert await ward.health() == "ok"
        assert ward.organization in await runbook.follow()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    # The one on its way when the sending ended may have arrived.
    await ward.applied("p1", sent, or_more=True)


async def test_without_a_broker_senders_are_told_so_until_it_is_back(ward: Ward) -> None:
    runbook = ward.runbook(BROKER)
    await ward.post(ward.event("p1", slow=1))
    kafka = ward.system.supervisor.pid("kafka")
    os.kill(kafka, signal.SIGSTOP)
    try:
        refused = ward.event("p2")
        answer = await ward.post_one(refused)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        await ward.until_health("broker: away", "ingest")
        await ward.until_health("waits for the broker")
        await ward.until_metric('carebus_consumer_paused{group="carebus-processor",reason="broker-away"}', bool)
        assert await ward.metric("carebus_broker_available", "ingest") == 0
        assert "producer-given-up" in ward.slugs("ingest")
        await runbook.follow(code=1, within=30)
        await runbook.follow()
    finally:
        os.kill(kafka, signal.SIGCONT)
    await runbook.follow(within=30)
    await ward.post(refused)  # again, and it has one effect
    await ward.applied("p1", 1)
    await ward.applied("p2", 1)


async def test_without_a_store_events_are_accepted_and_applied_once_it_is_back(ward: Ward) -> None:
    runbook = ward.runbook(STORE)
    letters = await ward.dead_letters()
    await ward.system.supervisor.stop("store")
    try:
        await ward.post(ward.event("p1"), ward.event("p2"))
        await ward.until_health("waits for the store")
        await ward.until_metric('carebus_consumer_paused{group="carebus-processor",reason="store-away"}', bool)
        assert "consumption-waits" in ward.slugs()
        await runbook.follow(code=1, within=30)
        await runbook.follow()
    finally:
        await ward.system.supervisor.start_again("store")
    await ward.applied("p1", 1)
    await ward.applied("p2", 1)
    await runbook.follow()
    assert await ward.dead_letters() == letters


async def test_too_many_parked_events_hold_everybody_up_until_their_cause_is_redriven(ward: Ward) -> None:
    runbook = ward.runbook(FULL)
    await ward.post(ward.event("p1", fail="permanent"), *(ward.event("p1") for _ in range(PARKED_LIMIT)))
    await ward.until_health("too many events are parked: ")
    await ward.until_metric('carebus_consumer_paused{group="carebus-processor",reason="parked-full"}', bool)
    assert await ward.metric("carebus_parked_events{") == PARKED_LIMIT
    assert await ward.metric("carebus_parked_patients{") == 1
    await ward.post(ward.event("bystander"))
    await runbook.follow()
    await runbook.follow(learn=FINGERPRINT)
    ward.solve()
    await runbook.follow()
    await ward.applied("p1", PARKED_LIMIT + 1)
    await ward.until_health("ok", within=20)
    await ward.applied("bystander", 1)
    assert await ward.metric("carebus_parked_patients{") == 0


async def test_an_event_that_kills_the_process_is_set_aside_and_redriven(ward: Ward) -> None:
    runbook = ward.runbook(CRASH)
    restarts = processor_restarts(ward)
    (killer, *_) = await ward.post(ward.event("p1", crash=True), ward.event("p1"))
    runbook.names["medical.events.v1-3-1042"] = killer
    await eventually(lambda: dead_lettered(ward, killer), within=60, what="it is a dead letter")
    assert processor_restarts(ward) == restarts + 1
    assert "events-were-interrupted" in ward.slugs()
    assert await ward.metric('carebus_dead_letters_total{group="carebus-processor",reason="crashed"}') == 1
    await ward.until_health("ok")
    await runbook.follow(learn={"5ff503cb21d7": r"^([0-9a-f]{12})  [1-9]"})
    await runbook.follow()
    ward.solve()
    await runbook.follow()
    await ward.applied("p1", 2)
    assert processor_restarts(ward) == restarts + 1


def processor_restarts(ward: Ward) -> int:
    (processor,) = (one for one in ward.system.status() if one.name == "processor")
    return processor.restarts


async def test_a_full_disk_loses_nothing_and_is_over_once_there_is_room(ward: Ward, disks: Disks) -> None:
    if not disks.mounted:
        pytest.skip("a disk is filled on a small file system of its own, and here the test may not mount one")
    runbook = ward.runbook(DISK)
    accepted: list[dict[str, Any]] = []

    def large() -> dict[str, Any]:
        return {**ward.event("p1"), "data": {"text": "x" * 3000}}

    with filled(disks.broker):
        event = large()
        while (answer := await ward.post_one(event)).status_code == 202:
            accepted.append(event)
            event = large()
        assert answer.status_code == 503, answer.text
        await runbook.follow(code=1, within=30)
        await runbook.follow()

    async def back() -> bool:
        return (await ward.post_one(event)).status_code == 202

    await eventually(back, within=60, what="events are accepted again")
    await ward.applied("p1", len(accepted) + 1)

    letters = await ward.dead_letters()
    with filled(disks.store):
        while "No space left on device" not in ward.log("store"):
            accepted.append(event := large())
            await ward.post(event)
        await runbook.follow()
        await runbook.follow(code=None, within=30, learn={"5804": r"^store +part +(\d+)"})
    await runbook.follow()
    await runbook.follow(within=60)
    await ward.applied("p1", len(accepted) + 1)
    assert await ward.dead_letters() == letters


@contextlib.contextmanager
def filled(path: Path) -> Iterator[None]:
    """Leave no room on the file system; it is there again afterwards."""
    ballast = path / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
        yield
    finally:
        ballast.unlink()


def test_every_section_with_commands_has_a_test() -> None:
    assert SECTIONS.keys() == {PARKED, STOPPED, LAG, BROKER, STORE, DISK, FULL, CRASH, ONE, PURGE}


def test_what_a_runbook_quotes_of_logs_and_metrics_is_what_the_code_says() -> None:
    text = PAGE.read_text()
    sources = "".join(path.read_text() for path in (ROOT / "libs/common/src").rglob("*.py"))
    logs = {
        slug for line in re.findall(r"[Ll]og ((?:`[a-z-]+`[^.`]*)+)", text) for slug in re.findall(r"`([a-z-]+)`", line)
    }
    assert len(logs) >= 8
    assert [slug for slug in sorted(logs) if f'"{slug}"' not in sources] == []
    metrics = set(re.findall(r"`(carebus_[a-z_]+)", text)) - {"carebus_common"}
    assert len(metrics) >= 8
    assert [name for name in sorted(metrics) if f'"{name}"' not in sources] == []

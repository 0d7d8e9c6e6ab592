"""Start everything, stream a day through it, show it, verify it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
from aiokafka.errors import KafkaError

from carebus_cli.client import ApiError, GatewayClient
from carebus_cli.connection import DEFAULT_ORG, tell_error
from carebus_cli.demo.lag import Lag, LagReader
from carebus_cli.demo.ledger import Ledger
from carebus_cli.demo.probe import Probe
from carebus_cli.demo.sample_day import SampleEvent, sample_day
from carebus_cli.demo.stream import stream
from carebus_cli.demo.summary import Summary, show
from carebus_cli.demo.verify import verify
from carebus_cli.demo.view import LiveView
from carebus_cli.meter import Meter, stderr
from carebus_cli.progress import Waiting
from carebus_local.system import System, running

__all__ = ["run_demo"]

_ROLES: Final = ("event-sender", "admin")
_SHOWN: Final = 12


async def run_demo(
    state_dir: Path, *, once: bool, patients: int, rate: float, drain: float, as_json: bool, started_at: float
) -> int:
    """The exit code: 0 if every post was accepted, and every accepted event processed once and in order.

    With `once` it returns after the summary, else when SIGINT or SIGTERM comes. Raises LocalError if something does
    not start.
    """
    signalled = _cancel_on_signals()
    code = 130
    try:
        async with AsyncExitStack() as stack:
            waiting = Waiting("starting", quiet=as_json)
            with waiting:
                async with _ticking(waiting.tick):
                    system = await stack.enter_async_context(running(state_dir, on_progress=waiting.note))
            summary = await _run_day(
                system, patients=patients, rate=rate, drain=drain, quiet=as_json, started_at=started_at
            )
            code = 0 if summary.complete else 1
            if as_json:
                sys.stdout.write(msgspec.json.format(msgspec.json.encode(summary.as_json())).decode() + "\n")
                sys.stdout.flush()
            else:
                show(summary)
            if not once:
                stderr.print(f"Carebus stays up; state and logs in {state_dir}. Ctrl-C stops it.")
                await asyncio.Event().wait()
    except asyncio.CancelledError:
        if not signalled():
            raise
    except ApiError as error:
        tell_error(error)
        return 1
    except KafkaError as error:
        stderr.print(f"Kafka does not answer: {type(error).__name__}", style="red")
        return 1
    return code


async def _run_day(
    system: System, *, patients: int, rate: float, drain: float, quiet: bool, started_at: float
) -> Summary:
    run = f"{time.strftime('%m%d')}-{secrets.token_hex(3)}"
    day = sample_day(run, patients=patients)
    ledger = Ledger()
    token = system.token(DEFAULT_ORG, _ROLES)
    async with GatewayClient(system.urls["gateway"], token) as client, LagReader(system.parts.kafka_bootstrap) as lags:
        probe = Probe(client, ledger)
        with LiveView(len(day), ledger, probe, quiet=quiet) as view:
            probing = asyncio.create_task(probe.run())
            try:
                seconds = await _stream_and_drain(client, day, ledger, lags, view, rate=rate, drain=drain)
            finally:
                probing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await probing
        with Meter("reading back, patients", patients, quiet=quiet) as meter:
            verdict = await verify(client, ledger, on_patient=meter.advance)
        patient_id = _patient_to_show(ledger)
        history, _ = await client.history_page(patient_id, {"limit": str(_SHOWN)})
    url = f"{system.urls['gateway']}/patients/{quote(patient_id, safe='')}/history"
    curl = f"curl -H {shlex.quote(f'Authorization: Bearer {token}')} {shlex.quote(f'{url}?limit=5')}"
    return Summary(run, ledger, verdict, probe, started_at, seconds, url, curl, history)


async def _stream_and_drain(
    client: GatewayClient,
    day: list[SampleEvent],
    ledger: Ledger,
    lags: LagReader,
    view: LiveView,
    *,
    rate: float,
    drain: float,
) -> float:
    """Stream the day, then wait until no consumer is behind, or none gets on for `drain` seconds.

    Returns the seconds that streaming took.
    """
    loop = asyncio.get_running_loop()
    view.begin(await _read(lags))
    began = changed_at = loop.time()
    streaming = asyncio.create_task(stream(client, day, ledger, rate=rate))
    streamed_at: float | None = None
    before: dict[str, Lag] = {}
    try:
        while True:
            await asyncio.wait([streaming], timeout=1.0 if not streaming.done() else 0.25)
            if streaming.done() and streamed_at is None:
                await streaming
                streamed_at = loop.time()
            lag = await _read(lags)
            view.tick(lag)
            if lag != before or not streaming.done():
                changed_at, before = loop.time(), lag
            if streamed_at is not None and lag and all(group.behind == 0 for group in lag.values()):
                return streamed_at - began
            if streamed_at is not None and loop.time() - changed_at > drain:
                stderr.print(f"Nothing has been processed for {drain:g} s; see what was.", style="red")
                return streamed_at - began
            if streaming.done():
                await asyncio.sleep(0.25)
    finally:
        streaming.cancel()


async def _read(lags: LagReader) -> dict[str, Lag]:
    try:
        return await lags.read()
    except KafkaError:
        return {}  # The broker is away; the supervisor says so.


def _patient_to_show(ledger: Ledger) -> str:
    """The one with the most events: there is most to see."""
    patients = ledger.by_patient()
    return max(patients, key=lambda patient_id: len(patients[patient_id]))


@asynccontextmanager
async def _ticking(tick: Callable[[], None]) -> AsyncIterator[None]:
    async def run() -> None:
        while True:
            await asyncio.sleep(0.5)
            tick()

    ticking = asyncio.create_task(run())
    try:
        yield
    finally:
        ticking.cancel()


def _cancel_on_signals() -> Callable[[], bool]:
    """Let the first SIGINT or SIGTERM cancel the current task, and the second end the process; tells if one came."""
    task = asyncio.current_task()
    came = False

    def on_signal() -> None:
        nonlocal came
        if came:
            os._exit(130)  # The children die with this process.
        came = True
        if task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return lambda: came

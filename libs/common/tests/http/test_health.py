"""Health says what is wrong, in time, and nothing more."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest

from carebus_common.errors import Unavailable
from carebus_common.http import Unhealthy, health, health_route

SECRET = "mongodb://root:hunter2@db"


async def fine() -> None:
    pass


async def test_all_is_well() -> None:
    answer = await health_route({"kafka": fine, "store": fine})()
    assert answer.model_dump() == {"data": {"status": "ok", "checks": {"kafka": "ok", "store": "ok"}}}


async def test_every_failed_check_is_named_with_its_reason_and_no_secret() -> None:
    async def says() -> None:
        raise Unhealthy("the breaker is open")

    async def breaks() -> None:
        raise ConnectionError(SECRET)

    async def hangs() -> None:
        await asyncio.Event().wait()

    checks = {"kafka": fine, "consumer": says, "store": breaks, "redis": hangs}
    began = time.monotonic()
    with pytest.raises(Unavailable) as refusal:
        await health_route(checks, timeout=timedelta(milliseconds=50))()
    assert time.monotonic() - began < 1
    assert refusal.value.details == [
        {"path": "consumer", "rule": "the breaker is open"},
        {"path": "store", "rule": "ConnectionError"},
        {"path": "redis", "rule": "no answer in time"},
    ]
    assert "Retry-After" in refusal.value.headers


async def test_without_what_it_can_do_without_a_service_is_degraded_and_not_unhealthy() -> None:
    async def away() -> None:
        raise Unhealthy("away: every read goes to the store")

    answer = await health_route({"store": fine}, asides={"cache": away})()
    assert answer.data.model_dump() == {
        "status": "degraded",
        "checks": {"store": "ok", "cache": "away: every read goes to the store"},
    }
    answer = await health_route({"store": fine}, asides={"cache": fine})()
    assert answer.data.status == "ok"
    with pytest.raises(Unavailable) as refusal:
        await health_route({"store": away}, asides={"cache": fine})()
    assert [detail["path"] for detail in refusal.value.details] == ["store"]


async def test_many_questions_at_once_are_one_check(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    async def counts() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)

    ask = health_route({"store": counts})
    await asyncio.gather(*(ask() for _ in range(100)))
    assert calls == 1
    now = time.monotonic()
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: now + 1.1))
    await ask()
    assert calls == 2

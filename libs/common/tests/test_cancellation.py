from __future__ import annotations

import asyncio

from carebus_common.cancellation import cancelled


async def test_a_loop_that_asks_ends_although_its_cancellation_was_swallowed() -> None:
    swallowed = 0

    async def loop() -> None:
        nonlocal swallowed
        while not cancelled():
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                swallowed += 1

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(5):
        await task
    assert swallowed == 1


async def test_an_inner_timeout_that_passes_is_no_cancellation() -> None:
    try:
        async with asyncio.timeout(0):
            await asyncio.sleep(1)
    except TimeoutError:
        pass
    assert not cancelled()

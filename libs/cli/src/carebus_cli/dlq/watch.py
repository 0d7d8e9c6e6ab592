"""Dead letters as they come: the list asked again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from carebus_cli.client import ApiError, GatewayClient
from carebus_cli.dlq.times import rfc3339
from carebus_cli.meter import plain, stderr
from carebus_cli.ops import Service, get_page, is_away, pages

__all__ = ["new_letters"]

_POLL: Final = 1.0
# Two owners' transactions end in another order than they began, so a little is read again each time.
_OVERLAP: Final = timedelta(seconds=60)


async def new_letters(
    client: GatewayClient,
    service: Service,
    params: Mapping[str, str],
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[dict[str, Any]]:
    """The dead letters from `since` on, else from now on, oldest first and each one once, without end.

    What is away later on is told once and waited for. Raises Refused, Unreachable.
    """
    since = params.get("since")
    known: dict[str, datetime] = {}
    if since is None:
        # Any answer tells the gateway's clock.
        await get_page(client, service, "dead-letters", params={"limit": "1"})
        since = rfc3339(client.now() - _OVERLAP)
        async for page in pages(client, service, "dead-letters", params={**params, "status": "all", "since": since}):
            known |= {letter["id"]: datetime.fromisoformat(letter["createdAt"]) for letter in page}
    away, first = False, True
    while True:
        try:
            found = [
                letter
                async for page in pages(
                    client, service, "dead-letters", params={**params, "status": "all", "since": since}
                )
                for letter in page
                if letter["id"] not in known
            ]
        except ApiError as error:
            if first or not is_away(error):
                raise
            if not away:
                stderr.print(f"{plain(error)}; still watching")
            away = True
        else:
            away = first = False
            for letter in reversed(found):
                known[letter["id"]] = datetime.fromisoformat(letter["createdAt"])
                yield letter
            if known:
                horizon = max(known.values()) - _OVERLAP
                since = max(since, rfc3339(horizon))
                known = {letter_id: at for letter_id, at in known.items() if at >= horizon - _OVERLAP}
        await sleep(_POLL)

"""Does a host and port accept connections?"""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

__all__ = ["accepts", "host_and_port"]


async def accepts(address: str, seconds: float = 2) -> None:
    """Open and close a connection to `host:port`; raises OSError or TimeoutError."""
    host, port = host_and_port(address)
    async with asyncio.timeout(seconds):
        _, writer = await asyncio.open_connection(host, port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def host_and_port(address: str) -> tuple[str, int]:
    """`host:port`, or the host and port of a URL."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    return parts.hostname or "127.0.0.1", parts.port or 0

"""Starts the gateway: the only place that opens connections."""

from __future__ import annotations

import asyncio

from carebus_common import logging, tracing
from carebus_common.auth import TokenVerifier
from carebus_common.http.server import run, serve
from carebus_common.jwks import key_source
from carebus_gateway.app import Gateway
from carebus_gateway.proxy import Upstream, client_session
from carebus_gateway.routes import urls_of
from carebus_gateway.settings import Settings


async def main(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Serve until SIGTERM, SIGINT or `stop`. Upstreams and keys may come and go."""
    stop = stop or asyncio.Event()
    keys = key_source(settings.jwks)
    await keys.start()
    try:
        async with client_session(settings) as session:
            upstreams = {name: Upstream(name, url, session, settings) for name, url in urls_of(settings).items()}
            await serve(Gateway(upstreams, TokenVerifier(keys, settings), settings, stop), settings, stop=stop)
    finally:
        await keys.stop()


if __name__ == "__main__":
    _settings = Settings()
    logging.configure(_settings, service="gateway")
    tracing.configure("gateway")
    run(main(_settings))

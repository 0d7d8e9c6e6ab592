"""Starts ingest: the only place that opens connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import FastAPI

from carebus_common import logging, tracing
from carebus_common.auth import TokenVerifier
from carebus_common.contracts.topics import EVENTS
from carebus_common.http import Unhealthy, create_app, health_route
from carebus_common.http.health import Check
from carebus_common.http.server import Listening, run, serve
from carebus_common.jwks import key_source
from carebus_common.kafka import Publisher
from carebus_common.redis_aside import RedisAside, connect
from carebus_ingest.documentation import described_routes
from carebus_ingest.idempotency import Replays
from carebus_ingest.rate_limit import RateLimiter
from carebus_ingest.routes import EventRoutes
from carebus_ingest.settings import Settings

__all__ = ["create_api", "main"]


def create_api(settings: Settings, verifier: TokenVerifier | None = None) -> FastAPI:
    """The app behind the event routes, with its OpenAPI document; connects to nothing."""
    api = create_app(
        title="Carebus ingest",
        version="1.0.0",
        settings=settings,
        verifier=verifier,
        description="Takes medical events and answers once the broker has them.",
    )
    api.include_router(described_routes())
    return api


async def main(
    settings: Settings,
    *,
    started: Callable[[Listening], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`. Kafka and Redis may come later, and go."""
    keys = key_source(settings.jwks)
    verifier = TokenVerifier(keys, settings)
    redis = RedisAside(connect(settings.redis_url, settings.redis_timeout))
    publisher = Publisher(
        settings.kafka_bootstrap,
        client_id="carebus-ingest",
        deadline=settings.publish_deadline,
        topics=[EVENTS.name],
    )
    limiter = RateLimiter(
        redis,
        events_per_minute=settings.rate_limit_events_per_minute,
        bytes_per_minute=settings.rate_limit_bytes_per_minute,
    )
    api = create_api(settings, verifier)
    api.get("/health", include_in_schema=False)(health_route({"broker": _broker_check(publisher)}))
    app = EventRoutes(
        api,
        settings,
        verifier=verifier,
        limiter=limiter,
        replays=Replays(redis, settings.idempotency_retention),
        publisher=publisher,
    )
    await keys.start()
    await publisher.start()
    try:
        await serve(app, settings, started=started, stop=stop)
    finally:
        await publisher.stop()
        await limiter.close()
        await redis.close()
        await keys.stop()


def _broker_check(publisher: Publisher) -> Check:
    async def check() -> None:
        if not publisher.available:
            raise Unhealthy("away")

    return check


if __name__ == "__main__":
    _settings = Settings()
    logging.configure(_settings, service="ingest")
    tracing.configure("ingest")
    run(main(_settings))

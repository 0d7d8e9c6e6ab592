"""Starts claims: the only place that opens connections."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, FastAPI
from pymongo.errors import PyMongoError

from carebus_claims.cache import ClaimsCache
from carebus_claims.change_feed import ChangeFeed
from carebus_claims.claim_effects import ClaimEffects
from carebus_claims.claim_routes import claim_routes
from carebus_claims.claim_service import ClaimService
from carebus_claims.claim_store import ClaimStore
from carebus_claims.operations import claims_operations
from carebus_claims.relay import ChangeRelay
from carebus_claims.repository import HISTORIES, PATIENTS, HistoryRepository
from carebus_claims.routes import history_routes, store_check
from carebus_claims.settings import Settings
from carebus_claims.subscribers import subscribe, subscription
from carebus_common import logging, mongo, ops, tracing
from carebus_common.auth import TokenVerifier
from carebus_common.consumer import Limits, OrderedConsumer, Store, open_recorder
from carebus_common.consumer.service import consume, consumer_check, kafka_broker
from carebus_common.contracts.topics import CLAIMS_DLQ
from carebus_common.http import create_app, health_route
from carebus_common.http.cursor import CursorCodec
from carebus_common.http.server import run, serve
from carebus_common.jwks import key_source
from carebus_common.kafka import MAX_DEAD_LETTER_BYTES, Publisher
from carebus_common.redis_aside import RedisAside, connect

log = logging.get_logger("carebus_claims")


def create_api(
    settings: Settings,
    verifier: TokenVerifier | None,
    repository: HistoryRepository,
    claims: APIRouter,
    operations: APIRouter,
) -> FastAPI:
    """What claims serves, with its OpenAPI document; connects to nothing."""
    api = create_app(title="Carebus claims", version="1.0.0", settings=settings, verifier=verifier)
    api.include_router(history_routes(repository, CursorCodec.of(settings, service="claims")))
    api.include_router(claims)
    api.include_router(operations)
    return api


async def main(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Serve and consume until SIGTERM, SIGINT or `stop`. Kafka, the store and the keys may come later."""
    stop = stop or asyncio.Event()
    keys = key_source(settings.jwks)
    client = mongo.connect(settings, app_name="carebus-claims")
    database = client[settings.claims_database]
    repository = HistoryRepository(database, timeout=settings.read_timeout)
    # Every read asks it: more than a saturated process has going at once, lest a queue be taken for an absence.
    redis = RedisAside(connect(settings.redis_url, settings.cache_timeout, connections=256))
    # Signed with the audit's key: who has that may write what they like anyway.
    cache = ClaimsCache(redis, settings.audit_key_bytes)
    claims = ClaimStore(
        database, audit_key=settings.audit_key_bytes, timeout=settings.write_timeout, writing=cache.writing
    )
    publisher = Publisher(
        settings.kafka_bootstrap,
        client_id="carebus-claims",
        deadline=settings.publish_deadline,
        topics=[CLAIMS_DLQ.name, settings.claims_changes_topic],
        max_message_bytes=MAX_DEAD_LETTER_BYTES,
    )
    relay = ChangeRelay(database, publisher, settings.claims_changes_topic)
    consumer = OrderedConsumer(
        subscription(settings),
        Store(database, inbox=HISTORIES, patients=PATIENTS, effects=ClaimEffects(claims, relay.wake)),
        publisher,
        limits=Limits(parked_events=settings.parked_events_limit),
        recorder=open_recorder(settings.notes_dir, settings.claims_group),
    )
    broker = kafka_broker(settings, client_id="carebus-claims")
    subscribe(broker, consumer)

    feed = ChangeFeed()
    service = ClaimService(claims, cache=cache, on_change=lambda _organization, _claim_ids: relay.wake())
    operations = claims_operations(settings, database, consumer)
    routes = claim_routes(service, CursorCodec.of(settings, service="claims"), feed)
    app = create_api(settings, TokenVerifier(keys, settings), repository, routes, operations)
    checks = {"store": store_check(repository), "consumer": consumer_check(consumer)}
    app.get("/health", include_in_schema=False)(health_route(checks, asides={"cache": cache.check}))

    await keys.start()
    await publisher.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_create_indexes(repository, claims, database, stop))
            tasks.create_task(consume(broker, consumer, stop))
            relaying = tasks.create_task(relay.run())
            tasks.create_task(_end_streams(feed, stop))
            await serve(app, settings, stop=stop)
            stop.set()
            relaying.cancel()
    finally:
        await publisher.stop()
        await keys.stop()
        await cache.close()
        await redis.close()
        await client.close()


async def _create_indexes(
    repository: HistoryRepository, claims: ClaimStore, database: mongo.Database, stop: asyncio.Event
) -> None:
    """Create them when the store is there; what runs meanwhile is right without them, only slower."""
    while not stop.is_set():
        try:
            await repository.create_indexes()
            await claims.create_indexes()
            await ops.create_indexes(database)
            return
        except PyMongoError as error:
            log.warning("indexes-wait-for-store", error=type(error).__name__)
            await asyncio.sleep(1)


async def _end_streams(feed: ChangeFeed, stop: asyncio.Event) -> None:
    """A stream has no end of its own, and the server waits for its connections."""
    await stop.wait()
    feed.close()


if __name__ == "__main__":
    _settings = Settings()
    logging.configure(_settings, service="claims")
    tracing.configure("claims")
    run(main(_settings))

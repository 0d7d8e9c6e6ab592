"""Starts the processor: the only place that opens connections."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, FastAPI
from pymongo.errors import PyMongoError

from carebus_common import logging, mongo, tracing
from carebus_common.auth import TokenVerifier
from carebus_common.consumer import Handler, Limits, OrderedConsumer, Store, open_recorder
from carebus_common.consumer.service import consume, consumer_check, kafka_broker
from carebus_common.contracts.event import MedicalEvent
from carebus_common.contracts.topics import EVENTS_DLQ, EVENTS_PROCESSED
from carebus_common.http import create_app, health_route
from carebus_common.http.server import run, serve
from carebus_common.jwks import key_source
from carebus_common.kafka import MAX_DEAD_LETTER_BYTES, Publisher
from carebus_processor.handlers import handle_event
from carebus_processor.indexes import ensure_indexes
from carebus_processor.operations import processor_operations
from carebus_processor.routes import event_routes
from carebus_processor.settings import Settings
from carebus_processor.status import EventStatus
from carebus_processor.subscribers import subscribe, subscription

log = logging.get_logger("carebus_processor")


def create_api(
    settings: Settings, verifier: TokenVerifier | None, status: EventStatus, operations: APIRouter
) -> FastAPI:
    """What the processor serves, with its OpenAPI document; connects to nothing."""
    api = create_app(title="Carebus processor", version="1.0.0", settings=settings, verifier=verifier)
    api.include_router(event_routes(status))
    api.include_router(operations)
    return api


async def main(settings: Settings, handler: Handler[MedicalEvent] = handle_event) -> None:
    """Serve and consume until SIGTERM or SIGINT. Kafka or the store may come later."""
    keys = key_source(settings.jwks)
    client = mongo.connect(settings, app_name="carebus-processor")
    database = client[settings.processor_database]
    publisher = Publisher(
        settings.kafka_bootstrap,
        client_id="carebus-processor",
        deadline=settings.publish_deadline,
        topics=[EVENTS_PROCESSED.name, EVENTS_DLQ.name],
        max_message_bytes=MAX_DEAD_LETTER_BYTES,
    )
    consumer = OrderedConsumer(
        subscription(settings, handler=handler),
        Store(database, inbox="processed_events", patients="patients"),
        publisher,
        limits=Limits(parked_events=settings.parked_events_limit),
        recorder=open_recorder(settings.notes_dir, settings.consumer_group),
    )
    broker = kafka_broker(settings, client_id="carebus-processor")
    subscribe(broker, consumer)

    operations = processor_operations(settings, database, consumer)
    app = create_api(settings, TokenVerifier(keys, settings), EventStatus(database, consumer), operations)
    app.get("/health", include_in_schema=False)(health_route({"consumer": consumer_check(consumer)}))

    stop = asyncio.Event()
    await keys.start()
    await publisher.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_ensure_indexes(database, settings, stop))
            tasks.create_task(consume(broker, consumer, stop))
            await serve(app, settings, stop=stop)
            stop.set()
    finally:
        await publisher.stop()
        await keys.stop()
        await client.close()


async def _ensure_indexes(database: mongo.Database, settings: Settings, stop: asyncio.Event) -> None:
    """Create them when the store is there; processing goes on meanwhile, since `_id` needs no creation."""
    while not stop.is_set():
        try:
            await ensure_indexes(database, settings.retention)
            return
        except PyMongoError as error:
            log.warning("store-away", error=type(error).__name__)
            await asyncio.sleep(1)


if __name__ == "__main__":
    _settings = Settings()
    logging.configure(_settings, service="processor")
    tracing.configure("processor")
    run(main(_settings))

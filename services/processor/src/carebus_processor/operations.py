"""What operators see and do of the processor: dead letters, the consumer, its topics."""

from __future__ import annotations

from fastapi import APIRouter

from carebus_common.contracts.topics import EVENTS, EVENTS_DLQ, EVENTS_PROCESSED
from carebus_common.mongo import Database
from carebus_common.ops import Replica, operations_routes
from carebus_processor.settings import Settings
from carebus_processor.subscribers import subscription

__all__ = ["processor_operations"]


def processor_operations(settings: Settings, database: Database, replica: Replica) -> APIRouter:
    """The routes `/ops/processor/…`."""
    consumed = subscription(settings)
    return operations_routes(
        service="processor",
        database=database,
        settings=settings,
        decode=consumed.decode,
        group=consumed.group,
        topic=consumed.topic,
        topics=(EVENTS.name, EVENTS_PROCESSED.name, EVENTS_DLQ.name),
        replica=replica,
    )

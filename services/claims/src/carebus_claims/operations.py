"""What operators see and do of claims: dead letters, the consumer, its topics."""

from __future__ import annotations

from fastapi import APIRouter

from carebus_claims.settings import Settings
from carebus_claims.subscribers import subscription
from carebus_common.contracts.topics import CLAIMS_DLQ
from carebus_common.mongo import Database
from carebus_common.ops import Replica, operations_routes

__all__ = ["claims_operations"]


def claims_operations(settings: Settings, database: Database, replica: Replica) -> APIRouter:
    """The routes `/ops/claims/…`."""
    consumed = subscription(settings)
    return operations_routes(
        service="claims",
        database=database,
        settings=settings,
        decode=consumed.decode,
        group=consumed.group,
        topic=consumed.topic,
        topics=(consumed.topic, CLAIMS_DLQ.name),
        replica=replica,
    )

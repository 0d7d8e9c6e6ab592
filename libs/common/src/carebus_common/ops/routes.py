"""The ops API of one service, from its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastapi import APIRouter

from carebus_common.consumer.change import PatientEvent
from carebus_common.http.cursor import CursorCodec
from carebus_common.mongo import Database
from carebus_common.ops.audit import Audit
from carebus_common.ops.consumer_routes import add_consumer_routes
from carebus_common.ops.dead_letter_routes import add_dead_letter_routes
from carebus_common.ops.dead_letters import DeadLetters
from carebus_common.ops.lag import Lag
from carebus_common.ops.operations import Operations, Replica
from carebus_common.ops.purges import Purges
from carebus_common.ops.review_routes import add_review_routes
from carebus_common.settings import HttpSettings, KafkaSettings, OperationsSettings

__all__ = ["OpsSettings", "operations_routes"]


class OpsSettings(HttpSettings, KafkaSettings, OperationsSettings):
    """What of a service's settings the ops API reads."""


def operations_routes(
    *,
    service: str,
    database: Database,
    settings: OpsSettings,
    decode: Callable[[bytes], PatientEvent],
    group: str,
    topic: str,
    topics: Iterable[str],
    replica: Replica,
) -> APIRouter:
    """The routes `/ops/{service}/…`; connects to nothing.

    `decode` is the subscription's: it raises for what is no event. `topics` are those that may be looked into: what
    the service reads, writes, and sends its dead letters to.
    """
    audit = Audit(database)
    operations = Operations(
        service=service,
        group=group,
        topic=topic,
        topics=frozenset(topics),
        decode=decode,
        replica=replica,
        redrive_cap=settings.redrive_cap,
        organization=settings.operations_organization,
        bootstrap=settings.kafka_bootstrap,
        timeout=settings.operations_store_timeout,
        database=database,
        cursors=CursorCodec.of(settings, service=f"{service} ops"),
        audit=audit,
        letters=DeadLetters(database, audit),
        purges=Purges(database, audit),
        lag=Lag(settings.kafka_bootstrap, group, topic),
    )
    router = APIRouter(prefix=f"/ops/{service}")
    add_consumer_routes(router, operations)
    add_dead_letter_routes(router, operations)
    add_review_routes(router, operations)
    return router

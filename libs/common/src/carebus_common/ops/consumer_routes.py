"""The consumer itself, and the topics it reads and writes: for the operations organization."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from aiokafka.errors import KafkaError
from fastapi import APIRouter, Path, Query
from pymongo.asynchronous.client_session import AsyncClientSession

from carebus_common.errors import Unavailable
from carebus_common.http import Data, Page, PageInfo
from carebus_common.logging import get_logger
from carebus_common.ops.audit import audit_row
from carebus_common.ops.dead_letters import REQUESTS
from carebus_common.ops.indexes import PARKED_EVENTS
from carebus_common.ops.models import ConsumerView, ReasonBody, TailQuery, TailRecordView
from carebus_common.ops.operations import Operations, Operator, RequestId
from carebus_common.ops.scope import Scope, nothing_here
from carebus_common.ops.tail import read_tail

__all__ = ["CONSUMERS", "PARKED_PATIENTS", "add_consumer_routes"]

log = get_logger(__name__)

CONSUMERS: Final = "consumers"
PARKED_PATIENTS: Final = "parked_patients"

_RETRY_AFTER: Final = timedelta(seconds=2)
_NO_FAILURES: Final = {"consecutive": 0, "window": []}


def add_consumer_routes(router: APIRouter, operations: Operations) -> None:
    @router.get("/consumer", summary="How the consumer does")
    async def get_consumer(caller: Operator) -> Data[ConsumerView]:
        """Whether it has stopped itself, how far it is behind, and what waits."""
        scope = operations.scope(caller)
        scope.require_operations()
        return Data(data=await _consumer_view(operations, scope))

    @router.post("/consumer/resume", summary="Let the consumer go on")
    async def resume_consumer(body: ReasonBody, caller: Operator, request_id: RequestId) -> Data[ConsumerView]:
        """After it has stopped itself; what it counted is forgotten. Harmless while it runs."""
        scope = operations.scope(caller)
        scope.require_operations()
        audited = audit_row(scope, "resume", reason=body.reason, request_id=request_id, target=[operations.group])
        with operations.in_time():
            await _resume(operations, audited)
        log.info("ops-consumer-resumed", ops=operations.service, actor=scope.actor)
        return Data(data=await _consumer_view(operations, scope))

    @router.get("/topics/{topic:segment}/tail", summary="A topic's newest records")
    async def tail_topic(
        topic: Annotated[str, Path(max_length=249)], query: Annotated[TailQuery, Query()], caller: Operator
    ) -> Page[TailRecordView]:
        """Newest last, payloads masked. `page.next` always goes on from here: ask again with it for what came since."""
        operations.scope(caller).require_operations()
        if topic not in operations.topics:
            raise nothing_here()
        bound = {"list": "tail", "topic": topic}
        position = operations.read_cursor(query.cursor, caller, bound)
        after = dict(enumerate(position)) if position is not None else None
        try:
            tail = await read_tail(operations.bootstrap, topic, limit=query.limit, after=after)
        except (KafkaError, OSError, TimeoutError):
            raise Unavailable("The broker is away.", retry_after=_RETRY_AFTER) from None
        if tail is None:
            raise nothing_here()
        positions = [tail.positions[number] for number in sorted(tail.positions)]
        following = operations.write_cursor(positions, caller, bound)
        records = [TailRecordView.model_validate(record) for record in tail.records]
        return Page(data=records, page=PageInfo(next=following))


async def _resume(operations: Operations, audited: dict[str, Any]) -> None:
    database = operations.database

    async def write(session: AsyncClientSession) -> None:
        await operations.audit.write(audited, session)
        change = {"$set": {"paused": None, "failures": _NO_FAILURES}, "$inc": {"version": 1}}
        await database[CONSUMERS].update_one({"_id": operations.group}, change, session=session)

    async with database.client.start_session() as session:
        await session.with_transaction(write)


async def _consumer_view(operations: Operations, scope: Scope) -> ConsumerView:
    database, letters = operations.database, operations.letters
    with operations.in_time():
        row = await database[CONSUMERS].find_one({"_id": operations.group}, {"paused": 1})
        # Both may be large, and what changes while one looks need not be counted to the last.
        parked_patients = await database[PARKED_PATIENTS].estimated_document_count()
        parked_events = await database[PARKED_EVENTS].estimated_document_count()
        open_letters = await letters.count_open(scope)
        pending = await database[REQUESTS].count_documents({})
        waiting = await database[PARKED_PATIENTS].find({}, {"since": 1}).sort([("since", 1)]).limit(1).to_list()
    partitions = await operations.lag.read()
    oldest: datetime | None = waiting[0]["since"] if waiting else None
    replica = operations.replica.status()
    return ConsumerView.model_validate(
        {
            "group": operations.group,
            "topic": operations.topic,
            "paused": (row or {}).get("paused"),
            "partitions": [
                {"partition": each.partition, "committed": each.committed, "end": each.end, "lag": each.lag}
                for each in partitions or ()
            ],
            "lag": None if partitions is None else sum(each.lag for each in partitions),
            "parkedPatients": parked_patients,
            "parkedEvents": parked_events,
            "openDeadLetters": open_letters,
            "pendingRequests": pending,
            "oldestWaitingSince": oldest,
            "thisReplica": {
                "partitions": list(replica.partitions),
                "inFlight": replica.in_flight,
                "storeAway": replica.store_away,
                "brokerAway": replica.broker_away,
            },
        }
    )

"""One consumer replica as a process of its own, to be killed: `replica.py BOOTSTRAP MONGO TOPIC OUT GROUP SECONDS`.

Its handler takes SECONDS for the patients whose id starts with `slow`; it remembers and emits each event's `n`. An
event with `do` ends or hangs the process, at once or from a coroutine. Notes go to the directory `REPLICA_NOTES`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from faststream import AckPolicy
from faststream.kafka import KafkaMessage

from carebus_common import mongo
from carebus_common.consumer import Change, Delivery, OrderedConsumer, State, Store, Subscription, open_recorder
from carebus_common.consumer.service import FETCHING, consume, kafka_broker
from carebus_common.contracts.event import MedicalEvent
from carebus_common.kafka import Publisher
from carebus_common.messages import Message
from carebus_common.settings import KafkaSettings, MongoSettings


async def main(bootstrap: str, mongo_url: str, topic: str, out: str, group: str, seconds: float) -> None:
    def handle(state: State | None, delivery: Delivery[MedicalEvent]) -> Any:
        event = delivery.event
        what = event.data.get("do")
        if what == "exit":
            os._exit(1)
        while what == "hang":
            pass
        seen = [*(state["seen"] if state else []), event.data["n"]]
        message = Message(out, event.patient_id.encode(), msgspec.json.encode({"n": event.data["n"]}))
        change = Change(row={"data": event.data}, state={"seen": seen}, messages=(message,))

        async def slowly() -> Change:
            await asyncio.sleep(seconds)
            if what == "exit later":
                os._exit(1)
            return change

        return slowly() if event.patient_id.startswith("slow") else change

    database = mongo.connect(MongoSettings(mongo_url=mongo_url), app_name="replica")[group]
    publisher = Publisher(bootstrap, client_id="replica", deadline=timedelta(seconds=10), topics=[out])
    consumer = OrderedConsumer(
        Subscription(
            topic,
            group,
            MedicalEvent.model_validate_json,
            handle,
            lambda e: msgspec.json.encode((e.patient_id, e.type, e.ts, e.data), order="deterministic"),
            handler_deadline=timedelta(seconds=float(os.environ.get("REPLICA_DEADLINE", "30"))),
        ),
        Store(database, inbox="inbox", patients="patients"),
        publisher,
        recorder=open_recorder(Path(notes) if (notes := os.environ.get("REPLICA_NOTES")) else None, group),
    )
    broker = kafka_broker(KafkaSettings(kafka_bootstrap=bootstrap), client_id="replica")

    @broker.subscriber(  # type: ignore[untyped-decorator]
        topic,
        group_id=group,
        ack_policy=AckPolicy.MANUAL,
        listener=consumer,
        **{**FETCHING, "session_timeout_ms": 6_000},
    )
    async def records(message: KafkaMessage) -> None:
        consumer.accept(message.raw_message)

    await publisher.start()
    await consume(broker, consumer, asyncio.Event())


if __name__ == "__main__":
    _, *names, delay = sys.argv
    bootstrap, mongo_url, topic, out, group = names
    asyncio.run(main(bootstrap, mongo_url, topic, out, group, float(delay)))

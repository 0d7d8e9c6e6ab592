"""One consumer over a topic that is full already: events a second and CPU an event. `run.py` starts it.

`measure.py BOOTSTRAP MONGO TOPIC GROUP EVENTS`; prints one JSON object. It uses nothing that an older checkout of the
runtime does not have, so that two of them can be measured in turn.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from datetime import timedelta

from faststream import AckPolicy
from faststream.kafka import KafkaMessage

from carebus_common import mongo
from carebus_common.consumer import OrderedConsumer, Store, Subscription
from carebus_common.consumer.service import FETCHING, consume, kafka_broker
from carebus_common.contracts.event import MedicalEvent
from carebus_common.kafka import Publisher
from carebus_common.settings import KafkaSettings, MongoSettings
from carebus_processor.handlers import handle_event
from carebus_processor.subscribers import content


async def main(bootstrap: str, mongo_url: str, topic: str, group: str, events: int) -> None:
    client = mongo.connect(MongoSettings(mongo_url=mongo_url), app_name="bench")
    database = client[group]
    publisher = Publisher(
        bootstrap, client_id="bench", deadline=timedelta(seconds=10), topics=["medical.events.processed.v1"]
    )
    subscription = Subscription(topic, group, MedicalEvent.model_validate_json, handle_event, content)
    consumer = OrderedConsumer(subscription, Store(database, inbox="inbox", patients="patients"), publisher)
    broker = kafka_broker(KafkaSettings(kafka_bootstrap=bootstrap), client_id="bench")
    done = 0
    all_done = asyncio.Event()
    taken: list[float] = []
    original = consumer._offsets.done

    def counted(partition: int, offset: int) -> None:
        nonlocal done
        original(partition, offset)
        done += 1
        if done == events:
            taken.append(time.perf_counter())
            all_done.set()

    consumer._offsets.done = counted  # type: ignore[method-assign]

    @broker.subscriber(  # type: ignore[untyped-decorator]
        topic, group_id=group, ack_policy=AckPolicy.MANUAL, listener=consumer, **FETCHING
    )
    async def records(message: KafkaMessage) -> None:
        if not taken:
            taken.append(time.perf_counter())
            taken.append(cpu())
        consumer.accept(message.raw_message)

    await publisher.start()
    stop = asyncio.Event()
    running = asyncio.create_task(consume(broker, consumer, stop))
    async with asyncio.timeout(600):
        await all_done.wait()
    began, cpu_before, ended = taken
    used = cpu() - cpu_before
    stop.set()
    await running
    await publisher.stop()
    inbox = await database["inbox"].count_documents({})
    await client.drop_database(group)
    await client.close()
    seconds = ended - began
    print(
        json.dumps({"events": events, "perSecond": events / seconds, "cpuMicros": used / events * 1e6, "inbox": inbox})
    )


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    _, _bootstrap, _mongo, _topic, _group, _events = sys.argv
    asyncio.run(main(_bootstrap, _mongo, _topic, _group, int(_events)))

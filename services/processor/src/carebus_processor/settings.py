"""The processor's configuration, from `CAREBUS_*` variables."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from carebus_common.ops import OpsSettings
from carebus_common.settings import ConsumerSettings, MongoSettings, TokenSettings

__all__ = ["Settings"]


class Settings(OpsSettings, ConsumerSettings, MongoSettings, TokenSettings):
    """`retention` bounds `processed_events`: an event sent again after it is a new event."""

    port: int = Field(default=8002, ge=0, le=65535)
    processor_database: str = "carebus_processor"
    consumer_group: str = "carebus-processor"
    # Topic retention (14 days) plus the time for which senders are told to retry (7 days), with room to spare.
    retention: timedelta = timedelta(days=90)
    # The emitter has nobody waiting at the other end: better a slow acknowledgement than a new producer.
    publish_deadline: timedelta = timedelta(seconds=10)


# How soon a reader may try again when the store or the broker is away: both usually return within seconds.
RETRY_AFTER = timedelta(seconds=2)

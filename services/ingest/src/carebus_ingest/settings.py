"""Ingest's configuration, from `CAREBUS_*` variables."""

from __future__ import annotations

from datetime import timedelta
from typing import Self

from pydantic import Field, model_validator

from carebus_common.settings import HttpSettings, KafkaSettings, RedisSettings, TokenSettings

__all__ = ["Settings"]


class Settings(HttpSettings, KafkaSettings, RedisSettings, TokenSettings):
    """Sizes are in bytes of the body as it is sent; limits are those of one organization."""

    port: int = Field(default=8001, ge=0, le=65535)
    public_url: str = Field(
        default="http://127.0.0.1:8000", description="Where senders reach the gateway; status URLs begin with it."
    )
    # 256 KiB of data, the other fields, and room for the escapes that a sender may use without need.
    max_event_bytes: int = Field(default=300 * 1024, ge=1024)
    max_batch_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    max_batch_events: int = Field(default=10_000, ge=1)
    # Leaves time to answer within the two seconds in which a sender is to know that the broker is away.
    publish_deadline: timedelta = timedelta(seconds=1.5)
    rate_limit_events_per_minute: int = Field(default=1_000, ge=1)
    rate_limit_bytes_per_minute: int = Field(default=16 * 1024 * 1024, ge=1)
    # How long the receipt of an Idempotency-Key is kept. The eventId follows from the key for ever.
    idempotency_retention: timedelta = timedelta(hours=24)
    # A round trip takes well under a millisecond; what takes this long is away.
    redis_timeout: timedelta = timedelta(milliseconds=200)

    @model_validator(mode="after")
    def _a_batch_must_fit(self) -> Self:
        if self.max_batch_bytes > self.rate_limit_bytes_per_minute:
            raise ValueError("max_batch_bytes must not exceed rate_limit_bytes_per_minute: such a batch never passes")
        return self

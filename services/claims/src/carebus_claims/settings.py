"""What claims is configured with, from `CAREBUS_*` variables."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field, SecretStr

from carebus_common.contracts.topics import CLAIMS_CHANGES, EVENTS_PROCESSED
from carebus_common.ops import OpsSettings
from carebus_common.settings import ConsumerSettings, MongoSettings, RedisSettings, TokenSettings

__all__ = ["Settings"]


class Settings(OpsSettings, ConsumerSettings, MongoSettings, RedisSettings, TokenSettings):
    port: int = Field(default=8003, ge=0, le=65535)
    # A thousand claims with their lines.
    max_body_bytes: int = 8 * 1024 * 1024
    claims_database: str = "carebus_claims"
    claims_topic: str = EVENTS_PROCESSED.name
    claims_group: str = "carebus-claims"
    # A reader would rather hear 503 than wait; the gateway gives up on a read after 10 s.
    read_timeout: timedelta = timedelta(seconds=2)
    # Longer than Redis ever takes, shorter than the store; after one such wait Redis is left alone for a while.
    cache_timeout: timedelta = timedelta(milliseconds=50)
    # As the processor's: nobody waits at the other end.
    publish_deadline: timedelta = timedelta(seconds=10)
    claims_changes_topic: str = CLAIMS_CHANGES.name
    write_timeout: timedelta = timedelta(seconds=10)
    # Without it the audit is sealed with a key that anybody can derive: a slip shows, a forger can hide.
    audit_key: SecretStr | None = Field(
        default=None, description="Seals the audit of claims; give all replicas the same, and never change it."
    )

    @property
    def audit_key_bytes(self) -> bytes:
        return (self.audit_key.get_secret_value() if self.audit_key else "unsealed claims").encode()

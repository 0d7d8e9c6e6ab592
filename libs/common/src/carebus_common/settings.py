"""What every service is configured with, from `CAREBUS_*` environment variables or files.

A secret may be given as a file: with `CAREBUS_SECRETS_DIR=/run/secrets`, `/run/secrets/carebus_mongo_url` is
read where `CAREBUS_MONGO_URL` is absent.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = [
    "HttpSettings",
    "KafkaSettings",
    "LogSettings",
    "MongoSettings",
    "OperationsSettings",
    "RedisSettings",
    "TokenSettings",
]


class _Carebus(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="CAREBUS_", secrets_dir=os.environ.get("CAREBUS_SECRETS_DIR"), frozen=True, extra="ignore"
    )


class LogSettings(_Carebus):
    """How a process logs."""

    log_format: Literal["json", "console"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_hash_key: SecretStr | None = Field(
        default=None, description="Keys the hashes of patient ids in logs; give all processes the same."
    )


class HttpSettings(LogSettings):
    """Where a service listens and what it refuses before reading on."""

    host: str = "127.0.0.1"
    port: int = Field(ge=0, le=65535)
    management_port: int = Field(default=0, ge=0, le=65535, description="Metrics; 0 picks a free port.")
    # 16 KiB holds a token with many roles several times over and is what common proxies allow in all.
    max_header_bytes: int = 16 * 1024
    max_body_bytes: int = 1024 * 1024
    body_timeout: timedelta = timedelta(seconds=20)
    shutdown_timeout: timedelta = timedelta(seconds=8)
    # Without it cursors are sealed with a key anybody can derive: they grant nothing, every query filters anyway.
    cursor_key: SecretStr | None = Field(default=None, description="Seals cursors; give all replicas the same.")


class KafkaSettings(_Carebus):
    kafka_bootstrap: str = "127.0.0.1:9092"


class ConsumerSettings(KafkaSettings):
    """How a consumer retries, and when it gives an event up."""

    retry_base: timedelta = Field(
        default=timedelta(seconds=2), description="Before the first retry; doubled each time."
    )
    retries: int = Field(default=3, ge=0, description="Retries of a failed event before it is a dead letter.")
    retry_deadline: timedelta = Field(
        default=timedelta(minutes=15), description="No retry is later than this after an event's first failure."
    )
    handler_deadline: timedelta = Field(
        default=timedelta(seconds=30), description="A handler that takes longer has failed, or hangs."
    )
    crash_limit: int = Field(
        default=3, ge=1, description="How often an event may take the process down before it is a dead letter."
    )
    parked_events_limit: int = Field(
        default=100_000, ge=1, description="With more events parked, no more are consumed."
    )
    # It must outlive a restart of the process, not the machine: in a container, a volume of its own.
    notes_dir: Path | None = Field(
        default=None, description="Where to note what is being handled; without it no crash is laid to an event."
    )


class MongoSettings(_Carebus):
    mongo_url: str = "mongodb://127.0.0.1:27017/?replicaSet=rs0"
    # How long an operation may look for a server before the store counts as away.
    mongo_server_selection_timeout: timedelta = timedelta(seconds=3)


class OperationsSettings(_Carebus):
    """Who operates the services, and within which bounds."""

    operations_organization: str = Field(
        default="carebus", description="Whose operators see every organization's dead letters, and the consumers."
    )
    redrive_cap: int = Field(default=5, ge=1, description="How often one event may be redriven.")
    # A summary reads every dead letter there is; the gateway gives up after 30 s.
    operations_store_timeout: timedelta = timedelta(seconds=25)


class RedisSettings(_Carebus):
    redis_url: str = "redis://127.0.0.1:6379/0"


class TokenSettings(_Carebus):
    """How tokens are verified; each service does it for itself."""

    jwks: str = Field(description="A JWKS document: a file path or an http(s) URL.")
    token_issuer: str = "carebus"  # noqa: S105
    token_audience: str = "carebus"  # noqa: S105
    token_types: frozenset[str] = frozenset({"at+jwt", "jwt"})
    token_leeway: timedelta = timedelta(seconds=5)

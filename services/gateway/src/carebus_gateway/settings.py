"""What the gateway is configured with, from `CAREBUS_*` variables."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from carebus_common.settings import HttpSettings, TokenSettings

__all__ = ["Settings"]


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("an http or https URL, such as http://ingest:8001")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("scheme, host and port only, such as http://ingest:8001")
    return f"{parts.scheme}://{parts.netloc}"


Origin = Annotated[str, AfterValidator(_origin)]


class Settings(HttpSettings, TokenSettings):
    """The timeouts run from the end of the request to the head of its answer, and again for each part of its body."""

    port: int = Field(default=8000, ge=0, le=65535)
    # A batch of 8 MiB is ingest's own limit; this one must let it through for ingest to say so.
    max_body_bytes: int = 9 * 1024 * 1024

    ingest_url: Origin = "http://127.0.0.1:8001"
    processor_url: Origin = "http://127.0.0.1:8002"
    claims_url: Origin = "http://127.0.0.1:8003"

    # Ingest itself says 503 within 2 s of the broker's going.
    event_timeout: timedelta = timedelta(seconds=5)
    batch_timeout: timedelta = timedelta(seconds=30)
    # Claims and the processor themselves say 503 when the store does not answer within 2 to 3 s.
    status_timeout: timedelta = timedelta(seconds=5)
    patients_timeout: timedelta = timedelta(seconds=10)
    claims_timeout: timedelta = timedelta(seconds=10)
    # A thousand claims in one request, each of which may have to wait its turn to be written.
    claims_batch_timeout: timedelta = timedelta(seconds=30)
    # They themselves say 503 when the store does not answer within 25 s: a summary reads every dead letter.
    operations_timeout: timedelta = timedelta(seconds=30)
    # A little longer than the 2 s after which their own checks give up.
    health_timeout: timedelta = timedelta(seconds=2.5)
    connect_timeout: timedelta = timedelta(seconds=1)
    # How long a caller may take to read the next part of a long answer.
    reading_timeout: timedelta = timedelta(seconds=30)

    # A stream may last for ever, but not be silent for longer than this: claims sends a heartbeat more often.
    stream_idle_timeout: timedelta = timedelta(seconds=60)

    # Reads of one operation run side by side, each with the patience of a read of claims.
    graphql_timeout: timedelta = timedelta(seconds=20)
    graphql_max_body_bytes: int = Field(default=64 * 1024, ge=1)
    graphql_max_depth: int = Field(default=8, ge=1)
    graphql_max_cost: int = Field(default=2000, ge=1, description="See carebus_gateway/graphql/limits.py.")
    graphql_max_aliases: int = Field(default=20, ge=0)
    graphql_concurrency: int = Field(default=8, ge=1, description="Requests to claims at a time, for one operation.")
    graphql_queries: int = Field(default=1000, ge=1, description="Query texts remembered, the newest ones.")
    graphql_allow_list: Path | None = Field(
        default=None, description="A JSON object of query texts by sha256: no other query is answered."
    )

    connections_per_upstream: int = Field(default=200, ge=1)
    # Streams hold a connection each; these come on top, so that they leave none the less to everybody else.
    streams_per_upstream: int = Field(default=500, ge=1)
    breaker_failures: int = Field(default=5, ge=1)
    breaker_rest: timedelta = timedelta(seconds=2)

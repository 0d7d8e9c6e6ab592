"""Every metric of every service, in one list; this list is the documentation.

Labels are bounded: event types are known types or `other`, reasons are the slugs of the error tree, and nothing is
labelled with an organization, a patient or an id. Names follow Prometheus: base units, `_total` for counters.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from carebus_common.contracts.event import canonical_type

__all__ = [
    "BREAKER_OPEN",
    "BREAKER_TRANSITIONS",
    "BROKER_AVAILABLE",
    "CACHE_PENDING",
    "CACHE_READS",
    "CONFLICTS",
    "CONSUMER_LAG",
    "CONSUMER_PAUSED",
    "DEAD_LETTERS",
    "DUPLICATES",
    "EMITTED",
    "EMIT_SECONDS",
    "EVENTS_ACCEPTED",
    "EVENTS_PROCESSED",
    "EVENTS_REJECTED",
    "HANDLER_SECONDS",
    "HTTP_REQUESTS",
    "HTTP_SECONDS",
    "IDEMPOTENCY_FAILED_OPEN",
    "IN_FLIGHT",
    "KNOWN_TYPES",
    "PARKED_EVENTS",
    "PARKED_PATIENTS",
    "PRODUCER_REBUILDS",
    "PUBLISH_SECONDS",
    "RATE_LIMITED",
    "RATE_LIMIT_FAILED_OPEN",
    "REDRIVES",
    "RETRIES",
    "STOPPED_PATIENTS",
    "TRANSACTION_EVENTS",
    "TRANSACTION_SECONDS",
    "UNDECODABLE",
    "UPSTREAM_SECONDS",
    "bounded_type",
]

# Single requests take from half a millisecond to the two seconds within which a 503 must come.
_REQUEST_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# A handler may take seconds, and an event may wait minutes for a store that is away.
_WORK_BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)

# --- HTTP, every service -------------------------------------------------------------------------------------------

# Answers by route template (`/patients/{patient_id}`, or `unmatched`), method and status.
HTTP_REQUESTS: Final = Counter("carebus_http_requests_total", "HTTP answers.", ["route", "method", "status"])
# From the request's headers to the end of its answer, by route template.
HTTP_SECONDS: Final = Histogram(
    "carebus_http_request_seconds", "Time to answer, seconds.", ["route"], buckets=_REQUEST_BUCKETS
)

# --- Ingest --------------------------------------------------------------------------------------------------------

# Events acknowledged by the broker, by bounded type.
EVENTS_ACCEPTED: Final = Counter("carebus_events_accepted_total", "Events acknowledged by the broker.", ["type"])
# Events refused, by error code (`invalid-request`, `rate-limited`, `unavailable`, …).
EVENTS_REJECTED: Final = Counter("carebus_events_rejected_total", "Events refused.", ["code"])
# Requests refused by the rate limit, by what ran out: `count` or `bytes`.
RATE_LIMITED: Final = Counter("carebus_rate_limited_total", "Requests over a rate limit.", ["limit"])
# Requests let through because the rate limiter's store did not answer.
RATE_LIMIT_FAILED_OPEN: Final = Counter(
    "carebus_rate_limit_failed_open_total", "Requests let through while the limiter was away."
)
# Idempotency keys not looked up or not kept because Redis did not answer.
IDEMPOTENCY_FAILED_OPEN: Final = Counter(
    "carebus_idempotency_failed_open_total", "Idempotency keys not looked up or kept while Redis was away."
)

# --- Kafka producers -----------------------------------------------------------------------------------------------

# From publish to the broker's acknowledgement, by topic.
PUBLISH_SECONDS: Final = Histogram(
    "carebus_publish_seconds", "Publish to acknowledgement, seconds.", ["topic"], buckets=_REQUEST_BUCKETS
)
# 1 while the producer is connected and healthy, 0 while the broker counts as away.
BROKER_AVAILABLE: Final = Gauge("carebus_broker_available", "Whether the broker is available (1) or away (0).")
# Producers replaced after a fatal error of the idempotent producer.
PRODUCER_REBUILDS: Final = Counter("carebus_producer_rebuilds_total", "Idempotent producers replaced.")

# --- Consumers, by consumer group ----------------------------------------------------------------------------------

# Events whose change was committed, by bounded type and outcome (`processed`, `parked`, `dead-lettered`, …).
EVENTS_PROCESSED: Final = Counter(
    "carebus_events_processed_total", "Events with a committed outcome.", ["group", "type", "outcome"]
)
# Same event at another offset: a sender's duplicate, nothing applied or emitted.
DUPLICATES: Final = Counter("carebus_duplicates_total", "Duplicate events.", ["group"])
# Same event id with another content: the first one stands.
CONFLICTS: Final = Counter("carebus_conflicts_total", "Event ids reused for other content.", ["group"])
# Records that are no event.
UNDECODABLE: Final = Counter("carebus_undecodable_total", "Records that could not be decoded.", ["group"])
# Events read and not yet committed.
IN_FLIGHT: Final = Gauge("carebus_events_in_flight", "Events read and not yet committed.", ["group"])
# Patients whose event the store refuses even to park: they stand still until the next restart.
STOPPED_PATIENTS: Final = Gauge("carebus_stopped_patients", "Patients that cannot even be parked.", ["group"])
# Patients of the whole group whose events wait behind one that failed, as the store estimates them.
PARKED_PATIENTS: Final = Gauge("carebus_parked_patients", "Patients that are parked.", ["group"])
# Events of the whole group that wait behind one that failed, or for its next try; as the store estimates them.
PARKED_EVENTS: Final = Gauge("carebus_parked_events", "Events that are parked.", ["group"])
# Failures after which an event is tried again.
RETRIES: Final = Counter("carebus_retries_total", "Failures that are tried again.", ["group"])
# Dead letters made, by reason (`permanent`, `retries-exhausted`, `undecodable`, `conflict`, `crashed`).
DEAD_LETTERS: Final = Counter("carebus_dead_letters_total", "Dead letters made.", ["group", "reason"])
# What became of redriven and discarded dead letters (`processed`, `duplicate`, `conflict`, `retrying`, `dead-lettered`,
# `discarded`).
REDRIVES: Final = Counter("carebus_redrives_total", "Dead letters redriven or discarded.", ["group", "outcome"])
# Records between the committed offset and the end of the partition; each replica tells of its own partitions.
CONSUMER_LAG: Final = Gauge(
    "carebus_consumer_lag_records", "Records not yet committed.", ["group", "topic", "partition"]
)
# 1 while consumption is paused, by reason: `failures` (it stopped itself), `parked-full` (too many events are parked),
# `store-away`, `broker-away`.
CONSUMER_PAUSED: Final = Gauge("carebus_consumer_paused", "Whether consumption is paused.", ["group", "reason"])
# Time in a handler, by bounded type.
HANDLER_SECONDS: Final = Histogram(
    "carebus_handler_seconds", "Time in a handler, seconds.", ["group", "type"], buckets=_WORK_BUCKETS
)
# One database transaction, from its start to its commit.
TRANSACTION_SECONDS: Final = Histogram(
    "carebus_transaction_seconds", "Time of a transaction, seconds.", ["group"], buckets=_WORK_BUCKETS
)
# Events written by one transaction.
TRANSACTION_EVENTS: Final = Histogram(
    "carebus_transaction_events",
    "Events in a transaction.",
    ["group"],
    buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500, 1000),
)
# Messages published after their transaction, by topic.
EMITTED: Final = Counter("carebus_emitted_total", "Messages emitted.", ["group", "topic"])
# From an event's commit to the acknowledgement of all it emits.
EMIT_SECONDS: Final = Histogram(
    "carebus_emit_seconds", "Commit to acknowledged emission, seconds.", ["group"], buckets=_WORK_BUCKETS
)

# --- Claims --------------------------------------------------------------------------------------------------------

# Reads of what is kept in Redis, by kind (`claim`, `list`) and result: `hit`, `miss`, `away` (Redis does not answer),
# `refused` (forged, altered, moved or too old: somebody else writes to Redis, or replicas have different keys).
CACHE_READS: Final = Counter("carebus_cache_reads_total", "Reads of the cache.", ["kind", "result"])
# Keys that are to be deleted from Redis once it is back.
CACHE_PENDING: Final = Gauge("carebus_cache_pending_keys", "Keys to delete from Redis once it is back.")

# --- Gateway -------------------------------------------------------------------------------------------------------

# Time of an upstream's answer, by upstream and result (status class such as `2xx`, `timeout`, `refused`).
UPSTREAM_SECONDS: Final = Histogram(
    "carebus_upstream_seconds",
    "Time of an upstream's answer, seconds.",
    ["upstream", "result"],
    buckets=_REQUEST_BUCKETS,
)
# 0 closed, 1 open, 0.5 letting one probe through.
BREAKER_OPEN: Final = Gauge("carebus_breaker_open", "State of an upstream's circuit breaker.", ["upstream"])
# Changes of state, by upstream and new state (`open`, `half-open`, `closed`).
BREAKER_TRANSITIONS: Final = Counter("carebus_breaker_transitions_total", "Breaker transitions.", ["upstream", "to"])

# The types that have a schema (architecture, section 2) or a handler; any other is counted as `other`, since senders
# choose type names and every label value lives for ever.
KNOWN_TYPES: Final = frozenset(
    {
        "admission",
        "discharge",
        "lab-result",
        "medication-ordered",
        "transfer",
        "treatment-initiated",
        "vital-signs",
        "encounter",
        "procedure",
        "immunization",
        "condition",
        "observation",
    }
)


def bounded_type(event_type: str) -> str:
    """The label for an event's type: the canonical name of a known type, else `other`."""
    name = canonical_type(event_type)
    return name if name in KNOWN_TYPES else "other"

"""What the gateway lets through, and to whom: one table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from carebus_common.errors import MethodNotAllowed, NotFound
from carebus_gateway.settings import Settings

__all__ = ["ROUTES", "Route", "UpstreamName", "find_route", "timeout_of", "urls_of"]

UpstreamName = Literal["ingest", "processor", "claims"]


@dataclass(frozen=True, slots=True)
class Route:
    """`upstreams` are asked in turn, until one knows the answer. `{id}` is one segment of a path.

    `streams`: its answer is passed on as it comes, for as long as it goes on.
    """

    method: str
    path: str
    upstreams: tuple[UpstreamName, ...]
    timeout: Literal["event", "batch", "status", "patients", "claims", "claims-batch", "operations"]
    streams: bool = False


# Of every service that consumes: `/ops/{service}` and one of these.
_OPERATIONS: Final = (
    ("GET", "/consumer"),
    ("POST", "/consumer/resume"),
    ("GET", "/topics/{id}/tail"),
    ("GET", "/dead-letters"),
    ("GET", "/dead-letters/summary"),
    ("POST", "/dead-letters/redrive"),
    ("POST", "/dead-letters/discard"),
    ("GET", "/dead-letters/{id}"),
    ("POST", "/dead-letters/{id}/reveal"),
    ("POST", "/dead-letters/{id}/edit"),
    ("GET", "/requests"),
    ("GET", "/runs/{id}"),
    ("GET", "/purges"),
    ("POST", "/purges"),
    ("POST", "/purges/{id}/approve"),
    ("GET", "/audit"),
)


def _operations(service: UpstreamName) -> tuple[Route, ...]:
    return tuple(Route(method, f"/ops/{service}{path}", (service,), "operations") for method, path in _OPERATIONS)


# Every operation by itself: nothing passes that the document does not show, and `Allow` is the path's own.
ROUTES: Final = (
    Route("POST", "/events", ("ingest",), "event"),
    Route("POST", "/events/batch", ("ingest",), "batch"),
    # Claims has an event once it is processed; until then the processor knows where it is.
    Route("GET", "/events/{id}", ("claims", "processor"), "status"),
    Route("GET", "/patients", ("claims",), "patients"),
    Route("GET", "/patients/{id}", ("claims",), "patients"),
    Route("GET", "/patients/{id}/history", ("claims",), "patients"),
    Route("GET", "/claims", ("claims",), "claims"),
    Route("POST", "/claims", ("claims",), "claims"),
    Route("POST", "/claims/bulk", ("claims",), "claims-batch"),
    Route("PATCH", "/claims/bulk", ("claims",), "claims-batch"),
    Route("GET", "/claims/changes", ("claims",), "claims", streams=True),
    Route("GET", "/claims/export", ("claims",), "claims", streams=True),
    Route("GET", "/claims/dashboard", ("claims",), "claims"),
    Route("GET", "/claims/{id}", ("claims",), "claims"),
    Route("PATCH", "/claims/{id}", ("claims",), "claims"),
    Route("POST", "/claims/{id}/assign", ("claims",), "claims"),
    Route("POST", "/claims/{id}/status", ("claims",), "claims"),
    Route("POST", "/claims/{id}/payment", ("claims",), "claims"),
    Route("GET", "/claims/{id}/audit", ("claims",), "claims"),
    *_operations("processor"),
    *_operations("claims"),
)

_PATTERNS: Final = tuple(
    (re.compile(route.path.replace("{id}", "[^/]+")), route) for route in ROUTES if "{" in route.path
)
_LITERAL: Final = {path: [route for route in ROUTES if route.path == path] for path in {route.path for route in ROUTES}}


def find_route(method: str, path: str) -> Route:
    """The route of an undecoded path; HEAD goes the way of GET. Raises NotFound, MethodNotAllowed."""
    # `/events/batch` is a path of its own and not the id "batch", nor `/claims/export` that of a claim.
    matching = _LITERAL.get(path) or [route for pattern, route in _PATTERNS if pattern.fullmatch(path)]
    for route in matching:
        if route.method == ("GET" if method == "HEAD" else method):
            return route
    if not matching:
        raise NotFound("There is nothing here.")
    allowed = ["GET, HEAD" if route.method == "GET" else route.method for route in matching]
    raise MethodNotAllowed("This path does not know that method.", headers={"Allow": ", ".join(allowed)})


def timeout_of(route: Route, settings: Settings) -> timedelta:
    return {
        "event": settings.event_timeout,
        "batch": settings.batch_timeout,
        "status": settings.status_timeout,
        "patients": settings.patients_timeout,
        "claims": settings.claims_timeout,
        "claims-batch": settings.claims_batch_timeout,
        "operations": settings.operations_timeout,
    }[route.timeout]


def urls_of(settings: Settings) -> dict[UpstreamName, str]:
    return {"ingest": settings.ingest_url, "processor": settings.processor_url, "claims": settings.claims_url}

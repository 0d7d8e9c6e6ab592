"""Every error a caller may see, as one tree.

    CarebusError                     status  code
    ├── InvalidRequest                 400   invalid-request        malformed, or a field breaks its rule
    │   └── MalformedJson              400   malformed-json         not the strict JSON of section "Bodies"
    ├── Unauthenticated                401   unauthenticated        no token, or one that does not verify
    ├── Forbidden                      403   forbidden              the token lacks the role
    ├── NotFound                       404   not-found              also for another tenant's thing
    ├── MethodNotAllowed               405   method-not-allowed
    ├── RequestTimeout                 408   request-timeout        the body stalled
    ├── Conflict                       409   conflict               changed meanwhile, or still in progress
    ├── PayloadTooLarge                413   payload-too-large
    ├── UnsupportedMediaType           415   unsupported-media-type
    ├── NotAllowed                     422   not-allowed            well formed but not allowed
    ├── RateLimited                    429   rate-limited           carries retry_after
    ├── HeadersTooLarge                431   headers-too-large
    ├── BadGateway                     502   bad-gateway            an upstream answered nonsense
    ├── Unavailable                    503   unavailable            a part is away; carries retry_after
    └── GatewayTimeout                 504   gateway-timeout        an upstream did not answer in time

`carebus_common.http.envelopes` maps the tree to responses, once. Messages and details must hold no patient
data: name the field and the rule, never the value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

__all__ = [
    "BadGateway",
    "CarebusError",
    "Conflict",
    "Forbidden",
    "GatewayTimeout",
    "HeadersTooLarge",
    "InvalidRequest",
    "MalformedJson",
    "MethodNotAllowed",
    "NotAllowed",
    "NotFound",
    "PayloadTooLarge",
    "RateLimited",
    "RequestTimeout",
    "Unauthenticated",
    "Unavailable",
    "UnsupportedMediaType",
]


class CarebusError(Exception):
    """A refusal the caller can act on: `status`, a stable `code`, a message, and details per field."""

    status: ClassVar[int]
    code: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        details: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = list(details)
        self.headers = dict(headers or {})


class InvalidRequest(CarebusError):
    status = 400
    code = "invalid-request"


class MalformedJson(InvalidRequest):
    code = "malformed-json"


class Unauthenticated(CarebusError):
    status = 401
    code = "unauthenticated"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(CarebusError):
    status = 403
    code = "forbidden"


class NotFound(CarebusError):
    status = 404
    code = "not-found"


class MethodNotAllowed(CarebusError):
    status = 405
    code = "method-not-allowed"


class RequestTimeout(CarebusError):
    status = 408
    code = "request-timeout"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Connection": "close"})


class Conflict(CarebusError):
    status = 409
    code = "conflict"


class PayloadTooLarge(CarebusError):
    status = 413
    code = "payload-too-large"


class UnsupportedMediaType(CarebusError):
    status = 415
    code = "unsupported-media-type"


class NotAllowed(CarebusError):
    status = 422
    code = "not-allowed"


class _Later(CarebusError):
    def __init__(
        self,
        message: str,
        *,
        retry_after: timedelta,
        details: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        seconds = max(1, -(-int(retry_after.total_seconds() * 1000) // 1000))
        super().__init__(message, details=details, headers={**(headers or {}), "Retry-After": str(seconds)})


class RateLimited(_Later):
    status = 429
    code = "rate-limited"


class HeadersTooLarge(CarebusError):
    status = 431
    code = "headers-too-large"


class BadGateway(CarebusError):
    status = 502
    code = "bad-gateway"


class Unavailable(_Later):
    status = 503
    code = "unavailable"


class GatewayTimeout(CarebusError):
    status = 504
    code = "gateway-timeout"

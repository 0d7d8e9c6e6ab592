"""HTTP as every service speaks it: envelopes, request ids, limits, strict queries, cursors, the server."""

from carebus_common.http.app import create_app
from carebus_common.http.documentation import openapi
from carebus_common.http.envelopes import Data, Page, PageInfo, error_response, json_response, send_response
from carebus_common.http.guards import (
    check_content_length,
    check_headers,
    content_type_of,
    read_body,
    request_id_of,
    require_content_type,
)
from carebus_common.http.health import Unhealthy, health_route

__all__ = [
    "Data",
    "Page",
    "PageInfo",
    "Unhealthy",
    "check_content_length",
    "check_headers",
    "content_type_of",
    "create_app",
    "error_response",
    "health_route",
    "json_response",
    "openapi",
    "read_body",
    "request_id_of",
    "require_content_type",
    "send_response",
]

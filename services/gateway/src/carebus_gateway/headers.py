"""Which headers pass the gateway, in and out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from carebus_common.errors import InvalidRequest
from carebus_common.http.envelopes import Header

__all__ = ["inbound", "outbound"]

# RFC 9110, section 7.6.1, and what older hops still send.
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Who calls is in the token and nowhere else.
_FORGEABLE: Final = frozenset({b"x-user-id", b"x-organization-id", b"x-real-ip", b"forwarded", b"cookie"})
# Set anew for the next hop. Answers are checked as they are, so nobody is asked to compress them.
_OURS_IN: Final = frozenset(
    {b"host", b"content-length", b"expect", b"accept-encoding", b"x-request-id", b"traceparent"}
)
_OURS_OUT: Final = frozenset({b"content-length", b"x-request-id", b"date", b"server", b"set-cookie"})


def inbound(headers: Iterable[Header]) -> list[tuple[str, str]]:
    """The caller's headers for an upstream. Raises InvalidRequest for one that is not UTF-8."""
    try:
        return [
            (name.decode("ascii"), value.decode())
            for name, value in _end_to_end(headers)
            if name not in _FORGEABLE and name not in _OURS_IN and not name.startswith(b"x-forwarded-")
        ]
    except UnicodeDecodeError:
        raise InvalidRequest("Malformed header.", details=[{"path": "headers", "rule": "UTF-8"}]) from None


def outbound(headers: Iterable[Header]) -> list[Header]:
    """An upstream's headers for the caller."""
    return [(name, value) for name, value in _end_to_end(headers) if name not in _OURS_OUT]


def _end_to_end(headers: Iterable[Header]) -> Iterator[Header]:
    """Headers with lower-case names, without those for this hop: the known ones and what `Connection` names."""
    lower = [(name.lower(), value) for name, value in headers]
    named = {token.strip().lower() for name, value in lower if name == b"connection" for token in value.split(b",")}
    return ((name, value) for name, value in lower if name not in _HOP_BY_HOP and name not in named)

from __future__ import annotations

from pathlib import Path

import pytest

from carebus_common.errors import InvalidRequest
from carebus_gateway.headers import inbound, outbound
from carebus_gateway.routes import ROUTES, find_route, timeout_of
from carebus_gateway.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readme_prints_the_routes() -> None:
    settings = Settings(jwks="-")
    for route in ROUTES:
        first, *others = route.upstreams
        goes = first + "".join(f"; where it does not know, the {other}" for other in others)
        patience = f"{timeout_of(route, settings).total_seconds():g} s" + (" each" if others else "")
        assert f"| `{route.method} {route.path}` | {goes} | {patience} |" in README


def test_the_batch_is_no_event_id() -> None:
    assert find_route("POST", "/events/batch").timeout == "batch"
    assert find_route("HEAD", "/events/x").upstreams == ("claims", "processor")


@pytest.mark.parametrize("value", ["é", "患者"])
def test_a_header_in_utf_8_keeps_its_bytes(value: str) -> None:
    assert inbound([(b"idempotency-key", value.encode())]) == [("idempotency-key", value)]


def test_a_header_that_is_no_text_is_refused_rather_than_altered() -> None:
    with pytest.raises(InvalidRequest):
        inbound([(b"idempotency-key", b"\xff")])


def test_headers_that_are_repeated_stay_so() -> None:
    assert outbound([(b"Vary", b"a"), (b"Vary", b"b"), (b"Date", b"x")]) == [(b"vary", b"a"), (b"vary", b"b")]


@pytest.mark.parametrize("url", ["ftp://x", "http://u:p@x", "http://x/path", "http://x?q", "x:8001", ""])
def test_an_upstream_is_named_by_its_origin_only(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|only"):
        Settings(jwks="-", ingest_url=url)

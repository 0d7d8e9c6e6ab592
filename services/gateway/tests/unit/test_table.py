from __future__ import annotations

from pathlib import Path

import pytest

from carebus_common.errors import InvalidRequest, MethodNotAllowed, NotFound
from carebus_gateway.headers import inbound, outbound
from carebus_gateway.routes import ROUTES, find_route, timeout_of
from carebus_gateway.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readme_prints_the_routes() -> None:
    settings = Settings(jwks="-")
    operations = [route for route in ROUTES if route.path.startswith("/ops/")]
    assert "| each operation of `/ops/processor` and `/ops/claims` in" in README
    assert {(route.path.split("/")[2], route.upstreams, route.timeout) for route in operations} == {
        (service, (service,), "operations") for service in ("processor", "claims")
    }
    for route in set(ROUTES) - set(operations):
        first, *others = route.upstreams
        goes = first + "".join(f"; where it does not know, the {other}" for other in others)
        patience = f"{timeout_of(route, settings).total_seconds():g} s" + (" each" if others else "")
        assert f"| `{route.method} {route.path}` | {goes} | {patience} |" in README


def test_what_no_document_shows_goes_nowhere() -> None:
    for path in (
        "/",
        "/patients/x/notes",
        "/ops/processor",
        "/ops/ingest/consumer",
        "/ops/claims/consumer/",
        "/claims//x",
    ):
        with pytest.raises(NotFound):
            find_route("GET", path)


def test_a_refused_method_tells_those_of_this_very_path() -> None:
    for method, path, allowed in [
        ("GET", "/events/batch", "POST"),
        ("GET", "/ops/claims/dead-letters/redrive", "POST"),
        ("DELETE", "/ops/claims/dead-letters/summary", "GET, HEAD"),
        ("PUT", "/ops/claims/purges", "GET, HEAD, POST"),
    ]:
        with pytest.raises(MethodNotAllowed) as refused:
            find_route(method, path)
        assert refused.value.headers == {"Allow": allowed}


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

"""Keys from files and URLs: fresh when they can be, old rather than none, and never from a token."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from carebus_common import jwks
from carebus_common.errors import Unavailable
from carebus_common.jwks import key_source, parse_jwks
from carebus_common.testing.tokens import Issuer

RS = Issuer(algorithm="RS256")
ES = Issuer()


@dataclass
class Provider:
    """An identity provider's key endpoint, whose answers a test chooses."""

    url: str = ""
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def provider() -> Iterator[Provider]:
    state = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.paths.append(self.path)
            self.send_response(state.status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(state.body)))
            self.end_headers()
            self.wfile.write(state.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}/jwks"
        yield state
        server.shutdown()
        thread.join()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def document(*issuers: Issuer) -> bytes:
    return json.dumps({"keys": [issuer.jwk() for issuer in issuers]}).encode()


def test_usable_keys_are_found_by_id_and_algorithm() -> None:
    keys = parse_jwks(document(RS, ES))
    assert set(keys) == {(RS.key_id, "RS256"), (ES.key_id, "ES256")}


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"alg": "RS512"},
        {"alg": "HS256"},
        {"key_ops": ["sign"]},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kid": None},
        {"n": "AQAB"},
        {"n": None},
        {"n": "not base64url!"},
    ],
    ids=str,
)
def test_a_key_meant_for_something_else_or_malformed_is_left_out(changes: dict[str, object]) -> None:
    broken = {**RS.jwk(), **changes}
    keys = parse_jwks(json.dumps({"keys": [broken, "nonsense", ES.jwk()]}).encode())
    assert set(keys) == {(ES.key_id, "ES256")}


@pytest.mark.parametrize("curve", [ec.SECP256K1(), ec.SECP384R1()], ids=lambda curve: curve.name)
def test_a_key_on_another_curve_is_left_out(curve: ec.EllipticCurve) -> None:
    other = Issuer()
    other.private_key = ec.generate_private_key(curve)
    assert other.jwk()["crv"] != "P-256"
    assert parse_jwks(document(other)) == {}


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"keys": {}}', b"null", b"\xff"])
def test_another_document_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_jwks(text)


async def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = RS.write_jwks(tmp_path / "jwks.json")
    source = key_source(str(path))
    await source.start()
    assert await source.find(ES.key_id, "ES256") is None
    RS.write_jwks(path, ES)
    await until(lambda: source.generation == 2)
    assert await source.find(ES.key_id, "ES256") is not None
    await source.stop()


async def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    source = key_source(str(RS.write_jwks(tmp_path / "jwks.json")))
    for _ in range(3):
        await source._reload()
    assert source.generation == 1


async def test_a_file_that_is_missing_at_the_start_is_found_later(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    source = key_source(str(path))
    await source.start()
    with pytest.raises(Unavailable):
        await source.find(RS.key_id, "RS256")
    RS.write_jwks(path)
    await until(lambda: source.generation == 1)
    assert await source.find(RS.key_id, "RS256") is not None
    await source.stop()


async def test_a_file_that_breaks_leaves_the_old_keys(tmp_path: Path) -> None:
    path = RS.write_jwks(tmp_path / "jwks.json")
    source = key_source(str(path))
    await source.start()
    path.write_text("{")
    await source._reload()
    assert await source.find(RS.key_id, "RS256") is not None
    path.unlink()
    await source._reload()
    assert await source.find(RS.key_id, "RS256") is not None
    RS.write_jwks(path, ES)
    await source._reload()
    assert await source.find(ES.key_id, "ES256") is not None
    await source.stop()


async def test_keys_come_from_a_url(provider: Provider) -> None:
    provider.body = document(RS)
    source = key_source(provider.url)
    await source.start()
    assert await source.find(RS.key_id, "RS256") is not None
    assert provider.paths == ["/jwks"]
    await source.stop()


async def test_unknown_key_ids_fetch_a_url_at_most_once_in_thirty_seconds(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.body = document(RS)
    source = key_source(provider.url)
    await source.start()
    for number in range(100):
        assert await source.find(f"made-up-{number}", "RS256") is None
    assert len(provider.paths) == 1
    provider.body = document(RS, ES)
    now = time.monotonic()
    monkeypatch.setattr(jwks, "time", SimpleNamespace(monotonic=lambda: now + 31))
    found = await asyncio.gather(*(source.find(ES.key_id, "ES256") for _ in range(50)))
    assert all(found)
    assert len(provider.paths) == 2
    await source.stop()


async def test_while_a_url_fails_the_old_keys_serve(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    provider.body = document(RS)
    source = key_source(provider.url)
    await source.start()
    provider.status = 500
    now = time.monotonic()
    monkeypatch.setattr(jwks, "time", SimpleNamespace(monotonic=lambda: now + 31))
    assert await source.find("unknown", "RS256") is None
    assert len(provider.paths) == 2
    assert await source.find(RS.key_id, "RS256") is not None
    await source.stop()


async def test_a_redirect_is_not_followed(provider: Provider) -> None:
    provider.status = 302
    provider.headers = {"Location": "/elsewhere"}
    provider.body = document(RS)
    source = key_source(provider.url)
    await source.start()
    with pytest.raises(Unavailable):
        await source.find(RS.key_id, "RS256")
    assert "/elsewhere" not in provider.paths
    await source.stop()


async def test_an_enormous_document_is_refused(provider: Provider) -> None:
    provider.body = document(RS) + b" " * 300_000
    source = key_source(provider.url)
    await source.start()
    with pytest.raises(Unavailable):
        await source.find(RS.key_id, "RS256")
    await source.stop()


async def test_a_provider_that_is_away_at_the_start_is_asked_again(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "_RETRY_EVERY", timedelta(milliseconds=20))
    provider.status = 503
    source = key_source(provider.url)
    await source.start()
    with pytest.raises(Unavailable):
        await source.find(RS.key_id, "RS256")
    provider.status, provider.body = 200, document(RS)
    await until(lambda: source.generation == 1)
    assert await source.find(RS.key_id, "RS256") is not None
    await source.stop()


async def test_a_silent_provider_does_not_hold_up_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "_FETCH_TIMEOUT", timedelta(milliseconds=50))

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        source = key_source(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        async with asyncio.timeout(5):
            await source.start()
        with pytest.raises(Unavailable):
            await source.find(RS.key_id, "RS256")
        await source.stop()

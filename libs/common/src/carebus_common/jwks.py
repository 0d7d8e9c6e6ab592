"""The keys that sign tokens: a JWKS document (RFC 7517) from a file or an http(s) URL, never from a token."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from carebus_common.cancellation import cancelled
from carebus_common.errors import Unavailable
from carebus_common.logging import get_logger

__all__ = ["Algorithm", "KeySource", "SigningKey", "key_source", "parse_jwks"]

_log = get_logger(__name__)

Algorithm: TypeAlias = Literal["RS256", "ES256"]
Keys: TypeAlias = Mapping[tuple[str, str], "SigningKey"]

MIN_RSA_BITS: Final = 2048
# Key sets hold a handful of keys of about 500 bytes; more is not a key set.
_MAX_DOCUMENT: Final = 256 * 1024
# How often a file's modification time is looked at, and a URL fetched without being asked.
_FILE_EVERY: Final = timedelta(seconds=1)
_URL_EVERY: Final = timedelta(minutes=10)
# An unknown key id makes a URL be fetched again, but anybody can make one up.
_UNKNOWN_EVERY: Final = timedelta(seconds=30)
_FETCH_TIMEOUT: Final = timedelta(seconds=3)
# `_FETCH_TIMEOUT` bounds each read; a server that drips bytes is cut off here.
_LOAD_TIMEOUT: Final = timedelta(seconds=6)
_RETRY_EVERY: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key and the only algorithm it verifies."""

    key_id: str
    algorithm: Algorithm
    public_key: RSAPublicKey | EllipticCurvePublicKey


def parse_jwks(document: bytes) -> dict[tuple[str, str], SigningKey]:
    """The usable keys of a JWKS document by (key id, algorithm).

    Left out: keys without an id, symmetric keys, RSA below 2048 bits, curves other than P-256, and keys meant for
    another use or algorithm. Raises ValueError if it is no JWKS document.
    """
    parsed = json.loads(document)
    entries = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JWKS document")  # noqa: TRY004 - of its content
    keys: dict[tuple[str, str], SigningKey] = {}
    for entry in entries:
        key = _parse_key(entry) if isinstance(entry, dict) else None
        if key is not None:
            keys[key.key_id, key.algorithm] = key
    return keys


def _parse_key(entry: dict[str, Any]) -> SigningKey | None:
    key_id = entry.get("kid")
    algorithm: Algorithm | None = {"RSA": "RS256", "EC": "ES256"}.get(str(entry.get("kty")))  # type: ignore[assignment]
    if not isinstance(key_id, str) or algorithm is None:
        return None
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or entry.get("alg", algorithm) != algorithm or "verify" not in operations:
        return None
    # A document that holds private parts by mistake still only gives its public key.
    public = {name: value for name, value in entry.items() if name in ("kty", "n", "e", "crv", "x", "y")}
    try:
        key: Any = (RSAAlgorithm if algorithm == "RS256" else ECAlgorithm).from_jwk(public)
    except (InvalidKeyError, ValueError, TypeError):
        _log.warning("signing-key-malformed", key_id=key_id)
        return None
    if algorithm == "RS256" and (not isinstance(key, RSAPublicKey) or key.key_size < MIN_RSA_BITS):
        _log.warning("signing-key-too-weak", key_id=key_id)
        return None
    if algorithm == "ES256" and not (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)):
        return None
    return SigningKey(key_id, algorithm, key)


class KeySource:
    """Keys that keep themselves fresh. Old keys serve while new ones cannot be loaded.

    `generation` changes whenever keys were loaded anew: what was verified before may no longer hold.
    """

    def __init__(self, load: Callable[[], bytes | None], *, every: timedelta, reload_unknown: timedelta) -> None:
        """`load` returns the document, or None if it has not changed; it may block and raise OSError or ValueError."""
        self._load = load
        self._every = every.total_seconds()
        self._reload_unknown = reload_unknown.total_seconds()
        self._keys: Keys | None = None
        self._loading: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._loaded_at = float("-inf")
        self.generation = 0

    async def start(self) -> None:
        """Try to load the keys, and keep them fresh until `stop`. Never fails: keys may come later."""
        await self._reload()
        self._task = asyncio.create_task(self._refresh_for_ever())

    async def stop(self) -> None:
        for task in (self._task, self._loading):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._task = self._loading = None

    async def find(self, key_id: str, algorithm: str) -> SigningKey | None:
        """The key; None if there is none. An unknown one is looked for anew, at most once per 30 s for a URL.

        Raises Unavailable if no keys were ever loaded.
        """
        if self._keys is None or (key_id, algorithm) not in self._keys:
            wait = _RETRY_EVERY.total_seconds() if self._keys is None else self._reload_unknown
            if time.monotonic() - self._loaded_at >= wait:
                await self._reload()
        if self._keys is None:
            raise Unavailable("Tokens cannot be verified yet.", retry_after=_FETCH_TIMEOUT)
        return self._keys.get((key_id, algorithm))

    async def _refresh_for_ever(self) -> None:
        while not cancelled():
            await asyncio.sleep(self._every if self._keys is not None else _RETRY_EVERY.total_seconds())
            await self._reload()

    async def _reload(self) -> None:
        """Load once, however many ask at the same time."""
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load_once())
        await asyncio.shield(self._loading)

    async def _load_once(self) -> None:
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT.total_seconds()):
                document = await asyncio.to_thread(self._load)
            if document is not None:
                self._keys = parse_jwks(document)
                self.generation += 1
        except (OSError, ValueError) as error:
            _log.warning("signing-keys-not-loaded", exc_info=error, serving_old=self._keys is not None)
        finally:
            self._loaded_at = time.monotonic()


def key_source(jwks: str) -> KeySource:
    """A source for `TokenSettings.jwks`: a file path or an http(s) URL."""
    if jwks.startswith(("http://", "https://")):
        return KeySource(lambda: _fetch(jwks), every=_URL_EVERY, reload_unknown=_UNKNOWN_EVERY)
    return KeySource(_FileReader(Path(jwks)), every=_FILE_EVERY, reload_unknown=_FILE_EVERY)


class _FileReader:
    """Reads a file if it is another one than last time: replaced, or written to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def __call__(self) -> bytes | None:
        stat = os.stat(self._path)  # noqa: PTH116 - a plain tuple of numbers is all that is wanted
        seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if seen == self._seen:
            return None
        if stat.st_size > _MAX_DOCUMENT:
            raise ValueError("too large for a JWKS document")
        self._seen = seen
        return self._path.read_bytes()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(url, timeout=_FETCH_TIMEOUT.total_seconds()) as response:
        document: bytes = response.read(_MAX_DOCUMENT + 1)
    if len(document) > _MAX_DOCUMENT:
        raise ValueError("too large for a JWKS document")
    return document

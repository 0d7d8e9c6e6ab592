"""The FastAPI app as every service builds it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.types import Lifespan

from carebus_common.auth import TokenVerifier
from carebus_common.settings import HttpSettings

__all__ = ["create_app", "openapi"]


def create_app(
    *,
    title: str,
    version: str,
    settings: HttpSettings,
    verifier: TokenVerifier | None = None,
    description: str = "",
    lifespan: Lifespan[FastAPI] | None = None,
) -> FastAPI:
    """An app with envelopes, request ids, limits and raw-path routing. Ids in paths: `{patient_id:segment}`."""
    raise NotImplementedError


def openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, for the generated docs; no app serves it."""
    raise NotImplementedError

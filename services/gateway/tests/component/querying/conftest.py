from __future__ import annotations

from typing import Any

import pytest

from .kit import Claims


@pytest.fixture
def claims(front: Any) -> Claims:
    front.claims.behave = Claims()
    claims: Claims = front.claims.behave
    return claims

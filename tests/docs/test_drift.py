"""A generated document that is not what the code would generate now is a lie; `make docs` writes them anew."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_spec = importlib.util.spec_from_file_location("carebus_docs_generate", ROOT / "docs/generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.mark.parametrize("path", generate.DOCUMENTS)
def test_a_generated_document_is_what_the_code_says(path: str) -> None:
    assert (ROOT / path).read_text() == generate.DOCUMENTS[path](), "run `make docs`"

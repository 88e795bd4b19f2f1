"""What the tests of hostile files share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.conftest import ada, bob, project
from tests.reading import MB, Reader, local_parser
from worker.pipeline.parse.local import LocalParser

__all__ = ["ada", "bob", "project"]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Read bytes as the worker does."""
    return Reader(tmp_path)


@pytest.fixture
async def parser() -> AsyncIterator[LocalParser]:
    """A parser whose children may use 512 MB."""
    made = local_parser(memory_bytes=512 * MB)
    yield made
    await made.aclose()

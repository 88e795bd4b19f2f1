"""Where images are built: a folder that the image's user can reach, unlike pytest's own, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """Give a new, world-readable folder, and remove it whatever rights its files have lost."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-image-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for below, _, _ in os.walk(folder):
            Path(below).chmod(0o755)
        shutil.rmtree(folder)

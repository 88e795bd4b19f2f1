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
    folder = Path(tempfile.mkdtemp(prefix="sluice-image-", dir=_memory()))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for below, _, _ in os.walk(folder):
            Path(below).chmod(0o755)
        shutil.rmtree(folder)


def _memory() -> Path | None:
    """Return a memory file system that programs may be run from, or None for the usual place.

    An image with its stages is thousands of files: a busy disk took 25 s to remove them, memory none.
    """
    shared = Path("/dev/shm")
    try:
        about = os.statvfs(shared)
    except OSError:
        return None
    roomy = about.f_bavail * about.f_frsize > 4 * 1024**3
    return shared if roomy and not about.f_flag & os.ST_NOEXEC and os.access(shared, os.W_OK) else None

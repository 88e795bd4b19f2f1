"""Where files under work are kept: a directory of this process, gone with it.

A worker that was killed cannot clean up after itself; the next one that starts on the same machine
does. A lock held on the directory tells the dead from the living: the kernel lets it go with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Of workers only: a stack, a demo or a test run beside us keeps its files in sluice-something too, without a lock.
_PREFIX = "sluice-worker-"


@contextlib.contextmanager
def workspace(parent: Path | None) -> Iterator[Path]:
    """Give a new private directory below `parent` (the system's temporary folder when None) and remove it after."""
    root = parent or Path(tempfile.gettempdir())
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(f"{_PREFIX}*"):
        _remove_if_dead(left)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _remove_if_dead(directory: Path) -> None:
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return  # no directory, another user's, or gone by now
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
    except OSError:
        pass  # its process lives
    finally:
        os.close(lock)

"""One holder a directory: an advisory lock that ends with its process, and says whose it is."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from local.errors import StackError


class Lock:
    """A lock file; `take` it, or look who has it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stream: IO[str] | None = None

    def take(self) -> None:
        """Take the lock, or raise StackError that names the process which has it."""
        stream = os.fdopen(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600), "r+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise StackError(
                f"{self._file.parent} is in use by process {self.holder}. "
                f"Stop it with Ctrl-C there or: python -m local down --directory {self._file.parent}"
            ) from None
        self._stream = stream
        self.say({})

    def say(self, facts: dict[str, str]) -> None:
        """Leave `facts` for whoever looks; the file is readable by its owner only."""
        if self._stream is None:
            raise StackError(f"{self._file} is not held by this process.")
        self._stream.seek(0)
        self._stream.truncate()
        json.dump({"pid": os.getpid(), **facts}, self._stream)
        self._stream.flush()

    def release(self) -> None:
        """Give the lock back; without effect where it is not ours."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def said(self) -> dict[str, Any] | None:
        """Return the facts of whoever has the lock now, `pid` among them, or None where nobody has it."""
        try:
            stream = self._file.open("r+")
        except FileNotFoundError:
            return None
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                facts: dict[str, Any] = json.loads(stream.read() or "{}")
                return facts
        return None

    @property
    def holder(self) -> int | None:
        """The process id of whoever has the lock now, or None."""
        facts = self.said()
        return None if facts is None else int(facts.get("pid", 0))

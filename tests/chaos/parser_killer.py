"""A format whose every document kills the sandboxed child that reads it."""

from __future__ import annotations

import ctypes
from typing import BinaryIO

from worker.pipeline.parse.draft import Draft

ERRORS: tuple[type[Exception], ...] = ()


def parse(_file: BinaryIO, _draft: Draft) -> None:
    """End this process as a broken library would; the sandbox refuses it a signal of its own."""
    ctypes.string_at(0)

"""Reads a file as the worker does: sniffed, then parsed in its own child."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from worker.model import Parsed, Source
from worker.pipeline.filetype import sniff
from worker.pipeline.parse.local import LocalParser

MB = 1024 * 1024
_DIRECTORY = tempfile.TemporaryDirectory(prefix="sluice-reading-")  # gone with the process


def local_parser(
    *,
    max_pages: int = 2000,
    max_text_bytes: int = 64 * MB,
    memory_bytes: int = 1024 * MB,
    cpu_seconds: int = 30,
    seconds: float = 60,
) -> LocalParser:
    """Return a parser with the worker's limits, or with tighter ones."""
    return LocalParser(
        max_pages=max_pages,
        max_text_bytes=max_text_bytes,
        memory_bytes=memory_bytes,
        cpu_seconds=cpu_seconds,
        seconds=seconds,
        directory=Path(tempfile.mkdtemp(dir=_DIRECTORY.name)),
    )


class Reader:
    """Writes bytes to a file, sniffs and parses them; raises what the worker would settle with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._count = 0

    async def __call__(self, data: bytes, name: str, parser: LocalParser | None = None) -> Parsed:
        """Return the pages of `data`, named `name` by its uploader."""
        self._count += 1
        path = self.directory / f"source-{self._count}"
        path.write_bytes(data)
        mine = parser or local_parser()
        try:
            source = Source(path, name, len(data), hashlib.sha256(data).digest(), sniff(path, name))
            return await mine.poll(await mine.submit(source))
        finally:
            path.unlink()
            if parser is None:
                await mine.aclose()

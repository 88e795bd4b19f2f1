"""A TCP line to the database on which connections go silent: open, and nothing passes any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit


class SilentLine:
    """Forwards to the database of `url`; `url` of the line itself takes its place."""

    def __init__(self, url: str) -> None:
        self._before = urlsplit(url)
        self._speaking: set[asyncio.Task[None]] = set()
        self.url = ""

    def silence(self) -> int:
        """Let nothing pass on the connections there are now; new ones speak. Returns how many fell silent."""
        for pump in self._speaking:
            pump.cancel()
        silenced, self._speaking = len(self._speaking) // 2, set()
        return silenced

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[SilentLine]:
        """Listen on a free port until the block ends."""
        writers: list[asyncio.StreamWriter] = []

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection(self._before.hostname, self._before.port)
            writers.extend((writer, far_writer))
            for source, sink in ((reader, far_writer), (far_reader, writer)):
                self._speaking.add(asyncio.create_task(_pump(source, sink)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        login = self._before.netloc.rpartition("@")[0]
        self.url = self._before._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()
        try:
            yield self
        finally:
            self.silence()
            server.close()
            for writer in writers:
                writer.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while block := await source.read(65536):
            sink.write(block)
            await sink.drain()
        sink.close()

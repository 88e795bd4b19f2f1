"""A TCP line to a local server that breaks when so many bytes have gone up it, or when the last answer comes down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager


class CuttingLine:
    """A line to `upstream`; made by `cutting_line`."""

    def __init__(self, upstream: int, cuts: Sequence[int], lose_answer_after: int | None) -> None:
        self._upstream = upstream
        self._cuts = sorted(cuts)
        self._lose_answer_after = lose_answer_after
        self._sent = 0
        self.broken = 0
        """How often it broke."""
        self.port = 0

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)

        async def up() -> bool:
            while block := await reader.read(65536):
                self._sent += len(block)
                if self._cuts and self._sent >= self._cuts[0]:
                    self._cuts.pop(0)
                    return True
                up_writer.write(block)
                await up_writer.drain()
            return False

        async def down() -> bool:
            while block := await up_reader.read(65536):
                if self._lose_answer_after is not None and self._sent >= self._lose_answer_after:
                    self._lose_answer_after = None
                    return True
                writer.write(block)
                await writer.drain()
            return False

        ways = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            with contextlib.suppress(OSError):
                done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                self.broken += max(way.result() for way in done)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()
            up_writer.transport.abort()


@asynccontextmanager
async def cutting_line(
    upstream: int, cuts: Sequence[int] = (), *, lose_answer_after: int | None = None
) -> AsyncIterator[CuttingLine]:
    """Carry connections to `upstream`; break one at each of these counts of bytes, over all of them.

    `lose_answer_after` breaks one more: the first that is answered after so many bytes, before the answer passes.
    """
    line = CuttingLine(upstream, cuts, lose_answer_after)
    server = await line.start()
    try:
        yield line
    finally:
        server.close()

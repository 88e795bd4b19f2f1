"""A TCP proxy between one worker and Postgres that loses answers, cuts lines and swallows everything."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, Protocol

# The end of every transaction of asyncpg: a simple query of its own.
_COMMIT = b"Q\x00\x00\x00\x0cCOMMIT;\x00"

# The call that publishes, a transaction of its own, by a word that stands in its arguments only.
_PUBLISH = b'"embedded"'

AtCommit = Literal["cut before", "lose the answer", "terminate", "kill before", "kill after"]


class Kill(Protocol):
    """Kills the worker; `first` is done a moment before."""

    def __call__(self, point: str, first: Callable[[], object] | None = None) -> Awaitable[bool]: ...


class _Link:
    """One connection of the worker and its counterpart."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.ends_with_answer = False

    @property
    def server_side_port(self) -> int:
        """Our port as the database sees it, by which the backend is found."""
        return int(self.server.get_extra_info("sockname")[1])

    def cut(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Forwards one worker's connections to `upstream`.

    `harm` does what it is given unless that would be the last that some job bears, and says whether it did;
    `kill` kills the worker, under the same condition; `terminate` ends the backend that our port is connected to.
    """

    def __init__(
        self,
        upstream: int,
        *,
        harm: Callable[[Callable[[], None]], Awaitable[bool]],
        kill: Kill,
        terminate: Callable[[int], Coroutine[Any, Any, None]],
    ) -> None:
        self._upstream = upstream
        self._harm = harm
        self._kill = kill
        self._terminate = terminate
        self._links: set[_Link] = set()
        self._road = asyncio.Event()
        self._road.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.at_commit: AtCommit | None = None
        self.hold_publish: float | None = None
        """Seconds for which the next publish is held back."""
        self.done: Counter[str] = Counter()
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Listen no more and cut what is connected."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """End every connection, without a word to either side."""
        for link in list(self._links):
            link.cut()

    @property
    def ports(self) -> list[int]:
        """Our ports as the database sees them."""
        return [link.server_side_port for link in self._links]

    def close_road(self) -> None:
        """Let nothing pass in either direction, and say so to nobody."""
        self._road.clear()

    async def open_road(self, seconds: float, *, then_cut: bool) -> None:
        """After so long let pass all that waited, or cut the lines."""
        try:
            await asyncio.sleep(seconds)
        finally:
            if then_cut:
                self.cut()
            self._road.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._road.wait()
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, server_writer)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._ask(link, reader))
                pumps.create_task(self._answer(link, server_reader))
        except* (OSError, RuntimeError):
            pass
        finally:
            self._links.discard(link)
            link.cut()

    async def _ask(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65536):
            await self._road.wait()
            commits = data.endswith(_COMMIT) or _PUBLISH in data
            if self.at_commit is not None and commits and await self._harmed(link, data):
                continue
            if self.hold_publish is not None and _PUBLISH in data:
                await self._hold()
            link.server.write(data)
            await link.server.drain()
        link.cut()

    async def _hold(self) -> None:
        seconds, self.hold_publish = self.hold_publish, None
        if seconds is not None and await self._harm(lambda: None):
            self.done["publish held back"] += 1
            await asyncio.sleep(seconds)

    async def _harmed(self, link: _Link, data: bytes) -> bool:
        """Do what is due at this COMMIT; whether it is not to be forwarded any more."""
        due, self.at_commit = self.at_commit, None
        match due:
            case "cut before":
                done = await self._harm(link.cut)
            case "lose the answer" | "terminate":
                done = await self._harm(lambda: None)
            case "kill before":
                done = await self._kill(f"commit: {due}")
            case "kill after":
                done = await self._kill(f"commit: {due}", first=lambda: link.server.write(data))
            case _:
                return False
        if not done:
            self.at_commit = due  # at a later one
            return False
        if due in ("cut before", "lose the answer", "terminate"):
            self.done[f"commit: {due}"] += 1
        if due == "lose the answer":
            link.ends_with_answer = True
        if due == "terminate":
            task = asyncio.create_task(self._terminate(link.server_side_port))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return due not in ("lose the answer", "terminate")

    async def _answer(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65536):
            await self._road.wait()
            if link.ends_with_answer:
                break
            link.client.write(data)
            with contextlib.suppress(ConnectionError):
                await link.client.drain()
        link.cut()

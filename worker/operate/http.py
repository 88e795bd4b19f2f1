"""A small HTTP/1.1 server on the event loop, for what a process answers itself: a bound on everything a client can do.

It knows no path and no method; a handler gets a request's head and decides whether its body is read at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import h11
from loguru import logger

_READ_BYTES = 64 * 1024
_HEAD_BYTES = 16 * 1024


class TooLarge(Exception):
    """A request's body has more bytes than its handler takes."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head; `path` is without its query, names of `headers` are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Callable[[int], Awaitable[bytes]]
    """Reads the body of at most that many bytes, once; raises TooLarge, or ConnectionError when the client leaves."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back; `headers` are those beside `content-length` and `connection`."""

    status: HTTPStatus
    body: bytes
    headers: Mapping[str, str]


Handler = Callable[[Request], Awaitable[Answer]]


@contextlib.asynccontextmanager
async def answering(
    handler: Handler, host: str, port: int, *, connections: int, seconds: float, keep_alive: bool
) -> AsyncIterator[int]:
    """Serve until the block ends; gives the port, which matters for port 0. Raises OSError where it cannot listen.

    Further clients than `connections` are turned away. With `keep_alive` a client may be silent for `seconds` before
    a request's head and while it takes the answer, and the handler sees to its own time; without it a connection has
    one request and `seconds` for all. A handler that raises ends its connection and nothing else.
    """
    serving: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(serving) >= connections:
            writer.close()
            return
        serving.add(task)
        try:
            async with asyncio.timeout(None if keep_alive else seconds):
                await _Connection(handler, reader, writer, seconds, keep_alive).run()
        except (OSError, TimeoutError, h11.ProtocolError):
            pass  # the client's affair: there is nobody to answer
        except Exception as exc:  # noqa: BLE001 - one request's failure is not the process's end
            logger.opt(exception=exc).error("internal error")
        finally:
            serving.discard(task)
            writer.close()

    server = await asyncio.start_server(accept, host, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Connection:
    """One client; requests come one after the other."""

    handler: Handler
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    seconds: float
    keep_alive: bool
    http: h11.Connection = field(
        default_factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
    )

    async def run(self) -> None:
        """Answer until the client leaves, or one of us ends it."""
        while await self._one():
            self.http.start_next_cycle()

    async def _one(self) -> bool:
        async with asyncio.timeout(self.seconds):
            head = await self._event()
        if not isinstance(head, h11.Request):
            return False
        method, path = head.method.decode("latin-1"), head.target.partition(b"?")[0].decode("latin-1")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        answer = await self.handler(Request(method, path, headers, self._body))
        await self._send(answer, without_body=method == "HEAD")
        # A request that was not read to its end leaves bytes behind that are no new one.
        return self.http.our_state is h11.DONE and self.http.their_state is h11.DONE

    async def _send(self, answer: Answer, *, without_body: bool) -> None:
        headers = [*answer.headers.items(), ("content-length", str(len(answer.body)))]
        if not self.keep_alive:
            headers.append(("connection", "close"))
        body = b"" if without_body else answer.body
        for event in (h11.Response(status_code=answer.status, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self.writer.write(self.http.send(event) or b"")
        async with asyncio.timeout(self.seconds):
            await self.writer.drain()

    async def _body(self, limit: int) -> bytes:
        body = bytearray()
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise ConnectionError("the client left in the middle of a request")
            body += event.data
            if len(body) > limit:
                raise TooLarge
        return bytes(body)

    async def _event(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if self.http.they_are_waiting_for_100_continue:
                go = h11.InformationalResponse(status_code=100, headers=[])
                self.writer.write(self.http.send(go) or b"")
            self.http.receive_data(await self.reader.read(_READ_BYTES))
        return event

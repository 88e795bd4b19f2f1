"""An HTTP server before the local stack that answers some paths itself and passes the rest on, WebSockets too."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

Answers = Mapping[str, tuple[int, Any]]
"""Status and body by the beginning of the path; a body of str goes as HTML, anything else as JSON."""


@contextlib.asynccontextmanager
async def front_door(behind: str, answers: Answers) -> AsyncIterator[str]:
    """Give the address of the door before the server at `behind`; each connection carries one request."""
    host, port = urlsplit(behind).hostname, urlsplit(behind).port
    carrying: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        for beginning, (status, body) in answers.items():
            if path.startswith(beginning):
                writer.write(_answer(status, body))
                await writer.drain()
                return
        far_reader, far_writer = await asyncio.open_connection(host, port)
        if b"upgrade: websocket" not in head.lower():
            head = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            head = b"\r\n".join(line for line in head.split(b"\r\n") if line.lower() != b"connection: keep-alive")
        far_writer.write(head)
        up = asyncio.create_task(_pump(reader, far_writer))
        try:
            await _pump(far_reader, writer)
        finally:
            up.cancel()
            far_writer.transport.abort()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        carrying.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await task
        carrying.discard(task)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in carrying:
            task.cancel()


def _answer(status: int, body: Any) -> bytes:
    kind, content = ("text/html", body) if isinstance(body, str) else ("application/json", json.dumps(body))
    head = f"HTTP/1.1 {status} Scripted\r\ncontent-type: {kind}\r\ncontent-length: {len(content.encode())}\r\n"
    return f"{head}connection: close\r\n\r\n{content}".encode()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while block := await source.read(65536):
            sink.write(block)
            await sink.drain()

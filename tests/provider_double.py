"""A provider over HTTP, scripted: real SDKs talk to it by their base URL, and it records what they sent.

    async with ProviderDouble() as double:
        double.on("POST", "/v1/embeddings", Reply(429, headers={"retry-after": "1"}), answer)
        client = AsyncOpenAI(api_key="sk-test", base_url=f"{double.url}/v1")
        ...
        (first, second) = double.requests          # in the order in which they arrived, bodies whole
        first.json["model"], first.headers["authorization"], second.form["file"].content

`on(method, path, *replies)` scripts a route. The path is matched without its query and may hold `*`
(`/api/parsing/job/*`); the route that was scripted last is asked first. Each reply is used once, in
order, and the last one for ever. A reply is a Reply, or a function, plain or async, that takes the
Request and returns one.

Reply(status, body, headers, seconds, until, cut): a body of bytes or str goes as it is, anything else as
JSON; the answer waits for `seconds` and for the event `until`; with `cut` only so many bytes of the body
are sent before the connection dies (0: not even a status line).

`aside(method, path, reply)` answers what comes by the clock, such as probes, and records none of it.

A request that no route answers gets 404 and fails the test when the block ends. `arrived(n)` waits until
n requests came, also those that are not answered yet; `most_at_once` counts those that were under way
together. One double serves any number of connections, also of other processes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart form."""

    content: bytes
    filename: str | None
    content_type: str

    @property
    def text(self) -> str:
        """The part as text."""
        return self.content.decode()


@dataclass(frozen=True, slots=True)
class Request:
    """What arrived; the names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, Part]:
        """The body as a multipart form; of parts with one name the last."""
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        message = BytesParser(policy=HTTP).parsebytes(head + self.body)
        parts = {}
        for part in message.iter_parts():
            name = str(part.get_param("name", header="content-disposition"))
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            parts[name] = Part(content, part.get_filename(), part.get_content_type())
        return parts


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; see above."""

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0
    until: asyncio.Event | None = None
    cut: int | None = None


Answer: TypeAlias = Reply | Callable[[Request], Reply | Awaitable[Reply]]


class ProviderDouble:
    """Listens on a free port of loopback from `async with` to its end."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.unexpected: list[str] = []
        self.most_at_once = 0
        self.url = ""
        self._routes: list[tuple[str, str, list[Answer]]] = []
        self._aside: list[tuple[str, str, Reply]] = []
        self._under_way = 0
        self._came = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def on(self, method: str, path: str, *replies: Answer) -> None:
        """Script a route: each reply once, in order, and the last for ever."""
        assert replies, "a route needs a reply"
        self._routes.insert(0, (method, path, list(replies)))

    def aside(self, method: str, path: str, reply: Reply) -> None:
        """Answer these requests always so, and record none."""
        self._aside.append((method, path, reply))

    def sent(self, method: str, path: str = "*") -> list[Request]:
        """Return the requests that came for a path, which may hold `*`."""
        return [each for each in self.requests if each.method == method and fnmatchcase(each.path, path)]

    async def arrived(self, count: int, seconds: float = 30) -> None:
        """Return when `count` requests came, all in all."""
        async with asyncio.timeout(seconds), self._came:
            await self._came.wait_for(lambda: len(self.requests) >= count)

    async def __aenter__(self) -> ProviderDouble:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if kind is None and self.unexpected:
            raise AssertionError(f"no reply was scripted for {', '.join(self.unexpected)}")

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await _read(reader)
                if (aside := self._besides(request)) is not None:
                    if not await _send(writer, aside):
                        return
                    continue
                self._under_way += 1
                self.most_at_once = max(self.most_at_once, self._under_way)
                try:
                    async with self._came:
                        self.requests.append(request)
                        self._came.notify_all()
                    reply = await self._reply(request)
                finally:
                    self._under_way -= 1
                if not await _send(writer, reply):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client hung up
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    def _besides(self, request: Request) -> Reply | None:
        found = (reply for m, path, reply in self._aside if request.method == m and fnmatchcase(request.path, path))
        return next(found, None)

    async def _reply(self, request: Request) -> Reply:
        for method, path, replies in self._routes:
            if request.method == method and fnmatchcase(request.path, path):
                answer = replies.pop(0) if len(replies) > 1 else replies[0]
                found = answer if isinstance(answer, Reply) else answer(request)
                reply = found if isinstance(found, Reply) else await found
                if reply.until is not None:
                    await reply.until.wait()
                await asyncio.sleep(reply.seconds)
                return reply
        self.unexpected.append(f"{request.method} {request.path}")
        return Reply(404, {"detail": "Not Found"})


async def _read(reader: asyncio.StreamReader) -> Request:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    url = urlsplit(target)
    return Request(method, unquote(url.path), parse_qs(url.query, keep_blank_values=True), headers, body)


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> bool:
    """Send an answer; whether the connection can be used on."""
    if reply.cut == 0:
        return False
    raw = isinstance(reply.body, bytes | str)
    content = reply.body if isinstance(reply.body, bytes) else (reply.body if raw else json.dumps(reply.body)).encode()
    headers = {"content-type": "text/plain" if raw else "application/json", **reply.headers}
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase if reply.status != 529 else 'Overloaded'}"]
    lines += [f"{name}: {value}" for name, value in {**headers, "content-length": str(len(content))}.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + content[: reply.cut])
    await writer.drain()
    return reply.cut is None

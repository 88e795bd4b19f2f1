"""A provider of embeddings over HTTP that fails as real ones do, by a seeded script."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np

from tests.chaos.vectors import MODEL, vector_of

REFUSED = "refused-by-the-provider"
KILLS = "kills-its-worker"
_HANG_SECONDS = 3.0
# It holds up all workers: with a second of it, 30 in 100 answers would leave three requests a second to all of them.
_WAIT = "retry-after: 0.2\r\n"
_STAMP = re.compile(r"Note \S+ line")
# Charged failures that one document may meet. Five attempts are all that it has; kills want some of them.
_CHARGED_LIMIT = 1
_SHARES = (
    ("ok", 50), ("429", 30), ("500", 10), ("hang", 5), ("cut", 1.25), ("few", 1.25), ("nan", 1.25), ("size", 1.25),
)  # fmt: skip


class Provider:
    """Answers with the hash of each text, or 429 with Retry-After, 500, silence, half an answer or wrong vectors.

    `kill` is called with the process that sent a text which kills its worker, and says whether it did: a neighbour
    that could not bear another death puts it off.
    """

    def __init__(self, seed: int, kill: Callable[[int], Awaitable[bool]], *, faulty: bool = True) -> None:
        self._randomness = random.Random(f"provider {seed}")
        self._kill = kill
        self._faulty = faulty
        self._charged: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self.answers: Counter[str] = Counter()
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                asked = json.loads(await reader.readexactly(length))
                if not await self._answer(writer, asked["texts"], asked["pid"]):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, texts: Sequence[str], pid: int) -> bool:
        """Send one answer; whether the connection can be used on."""
        fault = self._fault(texts)
        self.answers[fault] += 1
        rows = [vector_of(text) for text in texts]
        match fault:
            case "kills" if await self._kill(pid):
                return False
            case "kills":
                return await _send(writer, "429 Too Many Requests", {"error": "busy"}, _WAIT)
            case "refused":
                return await _send(writer, "400 Bad Request", {"error": "refused"})
            case "429":
                return await _send(writer, "429 Too Many Requests", {"error": "busy"}, _WAIT)
            case "500":
                return await _send(writer, "500 Internal Server Error", {"error": "broken"})
            case "hang":
                await asyncio.sleep(_HANG_SECONDS)
                return False
            case "few":
                rows = rows[:-1]
            case "nan":
                rows[-1] = np.full(MODEL.dimensions, np.nan, np.float32)
            case "size":
                rows = [row[:-1] for row in rows]
        body = {"vectors": [base64.b64encode(row.tobytes()).decode() for row in rows]}
        return await _send(writer, "200 OK", body, cut=fault == "cut")

    def _fault(self, texts: Sequence[str]) -> str:
        whole = "\n".join(texts)
        if KILLS in whole:
            return "kills"
        if REFUSED in whole:
            return "refused"
        if not self._faulty:
            return "ok"
        (name,) = self._randomness.choices([name for name, _ in _SHARES], [share for _, share in _SHARES])
        if name in ("ok", "429", "size"):  # not charged to the document
            return name
        # A request joins texts of several documents, and its failure is charged to each of them.
        documents = set(_STAMP.findall(whole)) or {whole}
        if any(self._charged[document] >= _CHARGED_LIMIT for document in documents):
            return "ok"
        self._charged.update(documents)
        return name


async def _send(
    writer: asyncio.StreamWriter, status: str, body: Mapping[str, object], headers: str = "", *, cut: bool = False
) -> bool:
    content = json.dumps(body).encode()
    writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(content)}\r\n{headers}\r\n".encode())
    writer.write(content[: len(content) // 2] if cut else content)
    await writer.drain()
    return not cut

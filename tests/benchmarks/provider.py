"""An embeddings server as cheap as can be, in a process of its own: what is measured is who asks it.

`python -m tests.benchmarks.provider` prints its port and serves until its standard input ends.

    POST /v1/embeddings   base64 vectors, unit length, each another one of a few thousand made beforehand
    POST /reset           {"seconds", "seconds_a_token", "tokens_a_minute", "refuse", "chars_a_token"}: how to answer
                          from now on; what was counted is forgotten
    GET  /counts          requests, texts, tokens, refusals, and when the first came, on the machine's monotonic clock

A token bucket, where there is one, is full at the reset; what it does not hold is answered with 429 and Retry-After.
Texts with the word `refuse` in them are refused with 400. Tokens are counted truly where a bucket needs them, else by
length: counting costs more than the rest.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from dataclasses import asdict, dataclass, field

import numpy as np

from worker.pipeline.embed.cl100k import Cl100k

DIMENSIONS = 1536
VECTORS = 8192


@dataclass(slots=True)
class Manner:
    """How the double answers."""

    seconds: float = 0.0
    seconds_a_token: float = 0.0
    tokens_a_minute: int = 0
    refuse: str = ""
    chars_a_token: float = 5.0


@dataclass(slots=True)
class Counts:
    """What it saw since the last reset."""

    requests: int = 0
    answered: int = 0
    texts: int = 0
    tokens: int = 0
    throttled: int = 0
    refused: int = 0
    most_at_once: int = 0
    first_at: float = 0.0
    seconds: list[float] = field(default_factory=list)  # of each answered request, as the provider sees it


class Double:
    """Answers and counts."""

    def __init__(self) -> None:
        vectors = np.random.default_rng(1).standard_normal((VECTORS, DIMENSIONS), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self._encoded = [base64.b64encode(row.tobytes()) + b'"}' for row in vectors.astype("<f4")]
        self._next = 0
        self._under_way = 0
        self._counter = Cl100k()
        self._counter.count([""])
        self.reset(Manner())

    def reset(self, manner: Manner) -> None:
        """Answer in this manner, and count from zero."""
        self.manner = manner
        self.counts = Counts()
        self._bucket = float(manner.tokens_a_minute)
        self._filled_at = time.monotonic()

    async def embeddings(self, body: bytes) -> tuple[str, list[bytes]]:
        """Answer one request: status line and headers, and the parts of the body."""
        counts, manner = self.counts, self.manner
        began = time.monotonic()
        counts.first_at = counts.first_at or began
        counts.requests += 1
        self._under_way += 1
        counts.most_at_once = max(counts.most_at_once, self._under_way)
        try:
            texts = json.loads(body)["input"]
            tokens = self._count(texts)
            if manner.refuse and any(manner.refuse in text for text in texts):
                counts.refused += 1
                return "400 Bad Request", [b'{"error": {"message": "refused", "type": "invalid_request_error"}}']
            wait = self._spend(tokens)
            if wait:
                counts.throttled += 1
                return f"429 Too Many Requests\r\nretry-after: {wait:.3f}", [b'{"error": {"message": "slow down"}}']
            pause = manner.seconds + manner.seconds_a_token * tokens
            if pause:
                await asyncio.sleep(began + pause - time.monotonic())
            counts.answered += 1
            counts.texts += len(texts)
            counts.tokens += tokens
            counts.seconds.append(time.monotonic() - began)
            return "200 OK", self._answer(len(texts), tokens)
        finally:
            self._under_way -= 1

    def _count(self, texts: list[str]) -> int:
        if self.manner.tokens_a_minute:
            return sum(self._counter.count(texts))
        return round(sum(map(len, texts)) / self.manner.chars_a_token)

    def _spend(self, tokens: int) -> float:
        """Take tokens from the bucket; how many seconds are missing, if any."""
        rate = self.manner.tokens_a_minute
        if not rate:
            return 0.0
        now = time.monotonic()
        self._bucket = min(rate, self._bucket + (now - self._filled_at) * rate / 60)
        self._filled_at = now
        if self._bucket >= tokens:
            self._bucket -= tokens
            return 0.0
        return max(0.001, (tokens - self._bucket) * 60 / rate)

    def _answer(self, texts: int, tokens: int) -> list[bytes]:
        parts = [b'{"object":"list","data":[']
        for index in range(texts):
            self._next = (self._next + 1) % VECTORS
            parts.append(b'%s{"object":"embedding","index":%d,"embedding":"' % (b"," if index else b"", index))
            parts.append(self._encoded[self._next])
        parts.append(b'],"model":"double","usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (tokens, tokens))
        return parts

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
                body = await reader.readexactly(length)
                if head.startswith("post /v1/embeddings"):
                    status, parts = await self.embeddings(body)
                elif head.startswith("post /reset"):
                    self.reset(Manner(**json.loads(body)))
                    status, parts = "200 OK", [b"{}"]
                else:
                    status, parts = "200 OK", [json.dumps(asdict(self.counts)).encode()]
                size = sum(map(len, parts))
                writer.write(
                    f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n".encode()
                )
                writer.writelines(parts)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def run() -> None:
    """Serve until whoever started us is gone."""
    double = Double()
    server = await asyncio.start_server(double.serve, "127.0.0.1", 0, limit=1 << 22)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(run())

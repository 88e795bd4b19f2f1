"""The bare loop: how fast this machine takes documents to vectors with no queue, no product and no bookkeeping.

`python -m tests.benchmarks.reference` works off `bare.documents`: each of `--concurrency` loops claims eight rows with
SKIP LOCKED, cuts them into chunks of equal tokens, asks for their vectors as base64 over a bare socket, and copies
text and vector in binary (the bytes swapped, nothing else) with the claim's commit. No leases, no retries, no
hashes, no log, no full text. An upper bound, and nothing to run in earnest: the transaction is open during the request.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import struct
import time
from collections.abc import AsyncIterator, Sequence

import asyncpg
import numpy as np
from numpy.typing import NDArray

from worker.pipeline.embed.cl100k import Cl100k

A_CLAIM = 8
SCHEMA = """
    create schema if not exists bare;
    create table if not exists bare.documents (
      id int primary key, content text not null, done boolean not null default false);
    create table if not exists bare.chunks (document int, ordinal int, content text, embedding extensions.vector(1536));
    create index if not exists documents_waiting on bare.documents (id) where not done"""
_CLAIM = "select id, content from bare.documents where not done order by id limit $1 for update skip locked"
_DONE = "update bare.documents set done = true where id = any($1)"
_COLUMNS = ("document", "ordinal", "content", "embedding")
_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)

Row = tuple[int, int, bytes]


class Provider:
    """One connection over which vectors are asked for, with nothing in between."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a row a text."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        reader, writer = self._streams
        body = json.dumps({"input": texts, "model": "m", "encoding_format": "base64"}).encode()
        writer.write(b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        answer = await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
        rows = [base64.b64decode(item["embedding"]) for item in json.loads(answer)["data"]]
        return np.frombuffer(b"".join(rows), "<f4").reshape(len(texts), -1)

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()


def copied(rows: Sequence[Row], vectors: NDArray[np.float32]) -> list[bytes]:
    """Write rows as COPY takes them in binary."""
    dimensions = vectors.shape[1]
    swapped = vectors.astype(">f4")
    head = struct.pack(">ihh", 4 + 4 * dimensions, dimensions, 0)
    parts = [_HEADER]
    for (document, ordinal, text), vector in zip(rows, swapped, strict=True):
        parts += (struct.pack(">hiiiii", 4, 4, document, 4, ordinal, len(text)), text, head, vector.tobytes())
    parts.append(_TRAILER)
    return parts


async def pieces(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Give the parts in one piece: asyncpg sends a message for each."""
    yield b"".join(parts)


async def work(url: str, provider: Provider, counter: Cl100k, tokens: int) -> int:
    """Claim and index until nothing waits; return how many chunks were made."""
    encoding = counter._encoding.result()
    connection = await asyncpg.connect(url)
    made = 0
    while True:
        async with connection.transaction():
            claimed = await connection.fetch(_CLAIM, A_CLAIM)
            if not claimed:
                break
            rows: list[Row] = []
            for row in claimed:
                ids = encoding.encode_ordinary(row["content"])
                rows += [
                    (row["id"], number, encoding.decode_bytes(ids[begin : begin + tokens]))
                    for number, begin in enumerate(range(0, len(ids), tokens))
                ]
            vectors = await provider.embed([text.decode(errors="replace") for _, _, text in rows])
            rows = [(document, number, text.decode(errors="replace").encode()) for document, number, text in rows]
            await connection.copy_to_table(
                "chunks", schema_name="bare", columns=_COLUMNS, format="binary", source=pieces(copied(rows, vectors))
            )
            await connection.execute(_DONE, [row["id"] for row in claimed])
        made += len(rows)
    await connection.close()
    provider.close()
    return made


async def run(url: str, port: int, concurrency: int, tokens: int) -> int:
    """Work with this many loops, and return how many chunks were made."""
    counter = Cl100k()
    return sum(await asyncio.gather(*(work(url, Provider(port), counter, tokens) for _ in range(concurrency))))


async def copy_rate(connection: asyncpg.Connection, *, rows: int = 4000, batch: int = 400) -> float:
    """Return how many rows of 1 kB and a vector one connection copies a second into bare.chunks, a commit a batch."""
    vectors = np.random.default_rng(2).standard_normal((batch, 1536), dtype=np.float32)
    text = ("word " * 205).encode()
    data = b"".join(copied([(0, number, text) for number in range(batch)], vectors))

    async def source() -> AsyncIterator[bytes]:
        yield data

    began = time.perf_counter()
    for _ in range(rows // batch):
        await connection.copy_to_table("chunks", schema_name="bare", columns=_COLUMNS, format="binary", source=source())
    return rows / (time.perf_counter() - began)


def main() -> None:
    """Parse the arguments, work, and print the number of chunks."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reference")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    arguments = parser.parse_args()
    print(asyncio.run(run(os.environ["DATABASE_URL"], arguments.port, arguments.concurrency, arguments.tokens)))


if __name__ == "__main__":
    main()

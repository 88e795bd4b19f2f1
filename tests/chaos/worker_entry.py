"""A worker process of a chaos run: the real composition, asking a scripted provider and reporting to the harness.

`python -m tests.chaos.worker_entry CONTROL_PORT PROVIDER_PORT`; all else comes from the environment, as always.
Only what speaks for a provider is another. At every stage the worker tells the harness where it is and waits for
its word, so that a signal hits the stage that it was meant for.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import asyncpg
import httpx
import numpy as np
from numpy.typing import NDArray

from tests.chaos import vectors
from worker.__main__ import run_worker
from worker.db.pool import Database, Session
from worker.errors import IngestError, Rejected, Throttled, Transient
from worker.model import Page, Parsed, Source
from worker.pipeline.embed.embedder import Batching, Embedder, unbilled
from worker.pipeline.filetype import MARKDOWN
from worker.pipeline.parse import local
from worker.pipeline.parse.parser import JsonValue, Parser, Webhook
from worker.settings import Settings

KILLER_TYPE = "text/x-killer"
KILLER_NAME = "kills-its-parser"
PROVIDER_SECONDS = 0.7


class Control:
    """The line to the harness: one question at a time, answered when the worker may go on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()

    async def tell(self, point: str, worker: str | None = None) -> None:
        """Say where we are; returns when the harness lets us go on, and never when it kills us."""
        async with self._turn:
            self._writer.write(json.dumps({"pid": os.getpid(), "point": point, "worker": worker}).encode() + b"\n")
            if not await self._reader.readline():
                os._exit(70)  # the harness is gone


class ObservedDatabase(Database):
    """The worker's database, whose calls show which stage it is in."""

    control: ClassVar[Control]

    async def fetch(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        rows = await super().fetch(name, *arguments)
        if name == "claim_jobs" and rows:
            await self.control.tell("claim", str(arguments[0]))
        elif name == "begin_embed":
            await self.control.tell("embed")
        return rows

    async def fetchrow(self, name: str, *arguments: Any) -> asyncpg.Record | None:
        if name == "begin_parse":
            await self.control.tell("parse")
        elif name == "store_parse_and_begin_embed":
            # A short text is read and cut before anything is told.
            await self.control.tell("parse")
            await self.control.tell("chunk")
        row = await super().fetchrow(name, *arguments)
        if name == "store_parse_and_begin_embed":
            await self.control.tell("embed")
        if name in ("begin_fetch", "active_model"):
            await self.control.tell("fetch" if name == "begin_fetch" else "ready")
        return row

    async def fetchval(self, name: str, *arguments: Any) -> Any:
        if name == "publish":
            await self.control.tell("publish")
        value = await super().fetchval(name, *arguments)
        if name == "store_parse":
            await self.control.tell("chunk")
        return value

    async def copy(
        self, table: str, columns: Sequence[str], records: Iterable[Sequence[Any]], *, schema: str | None = None
    ) -> None:
        await super().copy(table, columns, records, schema=schema)
        await self.control.tell("stored")

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        async with super().transaction() as session:
            yield session
        await self.control.tell("stored")


class ChaosParser:
    """Reads plain text by itself, for speed; Markdown and what kills its reader go to the real, sandboxed parser."""

    name = "chaos"
    version = "1"
    remote = False
    options: Mapping[str, JsonValue] = {}

    def __init__(self, real: Parser) -> None:
        self._real = real
        self._texts: dict[str, str] = {}

    async def submit(self, source: Source, webhook: Webhook | None = None) -> str:
        if KILLER_NAME in source.name:
            return await self._real.submit(dataclasses.replace(source, mime_type=KILLER_TYPE))
        if source.mime_type == MARKDOWN:
            return await self._real.submit(source)
        self._texts[str(source.path)] = source.path.read_text()
        return str(source.path)

    async def poll(self, reference: str) -> Parsed | None:
        text = self._texts.pop(reference, None)
        if text is None:
            return await self._real.poll(reference)
        return Parsed(tuple(Page(n, page) for n, page in enumerate(text.split("\f"), 1)), "text/plain")

    async def aclose(self) -> None:
        await self._real.aclose()


class HttpEmbedder:
    """Asks the scripted provider over HTTP and translates its answers as an adapter does."""

    model = vectors.MODEL
    batching = Batching(texts=8, tokens=8 * vectors.MODEL.max_tokens, at_once=4, linger=0)

    def __init__(self, port: int) -> None:
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PROVIDER_SECONDS)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return vectors.count_tokens(texts)

    async def embed(self, texts: Sequence[str], *, billed: Callable[[int], None] = unbilled) -> NDArray[np.float32]:
        try:
            answer = await self._http.post("/embed", json={"texts": list(texts), "pid": os.getpid()})
        except httpx.HTTPError as exc:
            raise _failed(type(exc).__name__) from exc
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise Throttled(
                "provider_rate_limited", "The provider is busy.", retry_after=float(answer.headers["retry-after"])
            )
        if answer.status_code == httpx.codes.BAD_REQUEST:
            raise Rejected("provider_refused", "The provider refuses this text. Change it and upload it again.")
        if answer.status_code != httpx.codes.OK:
            raise _failed(f"HTTP {answer.status_code}")
        try:
            rows = [np.frombuffer(base64.b64decode(row), np.float32) for row in answer.json()["vectors"]]
            return np.stack(rows)
        except ValueError as exc:
            raise _failed(type(exc).__name__) from exc

    async def aclose(self) -> None:
        await self._http.aclose()


def _failed(detail: str) -> IngestError:
    return Transient("provider_failed", "The provider did not answer. It is tried again by itself.", detail=detail)


async def main(control_port: int, provider_port: int) -> None:
    """Run one worker until it is signalled."""

    def adapters(settings: Settings, directory: Path, stack: contextlib.AsyncExitStack) -> tuple[Parser, Embedder]:
        real = local.LocalParser(
            max_pages=settings.max_pages, max_text_bytes=settings.max_text_bytes,
            memory_bytes=settings.parse_memory_bytes, cpu_seconds=settings.parse_cpu_seconds,
            seconds=settings.parse_seconds, directory=directory, allow_unsandboxed=settings.allow_unsandboxed,
        )  # fmt: skip
        parser, embedder = ChaosParser(real), HttpEmbedder(provider_port)
        stack.push_async_callback(parser.aclose)
        stack.push_async_callback(embedder.aclose)
        return parser, embedder

    local.MODULES[KILLER_TYPE] = "tests.chaos.parser_killer"
    ObservedDatabase.control = Control(*await asyncio.open_connection("127.0.0.1", control_port))
    await run_worker(Settings(), adapters, ObservedDatabase)


if __name__ == "__main__":
    try:
        asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
    except IngestError as error:
        sys.exit(f"{error.code}: {error.detail}")

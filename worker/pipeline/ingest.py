"""What happens to one document, read top to bottom: fetch → parse → chunk → embed → publish."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker import metrics
from worker.db.pool import Database, VectorsMissing
from worker.errors import Rejected
from worker.model import Chunk, Claim, Stage
from worker.pipeline.chunk import chunk
from worker.pipeline.embed.batcher import Batcher
from worker.pipeline.embed.stage import embed
from worker.pipeline.fetch import ObjectStore, fetch
from worker.pipeline.parse.choose import Parsers
from worker.pipeline.parse.local import is_small_text
from worker.pipeline.parse.stage import parse, skim, store_and_begin_embed
from worker.pipeline.publish import publish
from worker.pipeline.tokens import CountTokens

# Where each stage begins on the progress bar; embedding is most of the work.
_BEGINS: dict[Stage, float] = {"fetch": 0.0, "parse": 0.05, "chunk": 0.25, "embed": 0.3, "publish": 0.95}
_PROGRESS_SECONDS = 1.0
_SHORT_SECONDS = 1.0
_PUBLISH_TRIES = 3


@dataclass(frozen=True, slots=True)
class Ingest:
    """The pipeline with everything it needs; one call takes one claim from bytes to published chunks."""

    db: Database
    store: ObjectStore
    parsers: Parsers
    batcher: Batcher
    count_tokens: CountTokens
    max_file_bytes: int
    max_chunk_tokens: int
    clock: Callable[[], float] = time.monotonic

    async def __call__(self, claim: Claim, path: Path, settling: Callable[[bool], None]) -> None:
        """Ingest the claimed generation, with its bytes in `path`, and publish it.

        `settling(True)` is called before the transaction that ends the claim, so that nobody renews a
        lease that is being deleted; `settling(False)` when it has to be tried again. Raises the errors
        of errors.py, whose class is the verdict.
        """
        stages = _Stages(self.db, claim, self.clock)

        fetched = await fetch(self.db, self.store, claim, path, max_bytes=self.max_file_bytes)
        source = fetched.source

        short = is_small_text(source) and (self.parsers.cheap_first or not self.parsers.main.remote)
        await stages.enter("parse", {"bytes": source.size}, short=short)
        choice = await self.parsers.choose(source)
        if choice.detail:
            await stages.enter("parse", choice.detail, short=short)
        reading = await skim(choice, source) if short else None
        if reading is None:
            reading = await parse(self.db, self.parsers, choice, claim, source)
        parsed = reading.parsed

        await stages.enter("chunk", {"pages": len(parsed.pages), **reading.detail}, short=short)
        chunks: list[Chunk] = await asyncio.to_thread(
            chunk, parsed.pages, count_tokens=self.count_tokens, max_tokens=self.max_chunk_tokens
        )
        if not chunks:
            if reading.parse_id is None:
                await parse(self.db, self.parsers, choice, claim, source)  # kept, so that nobody reads it again
            raise Rejected("no_text", "The file holds no text that could be searched. Upload one with text.")
        path.unlink(missing_ok=True)

        parse_id = reading.parse_id
        entering: str | None = stages.follow("embed", {"chunks": len(chunks)})

        async def begin(keys: list[bytes]) -> set[bytes]:
            nonlocal parse_id, entering
            entered, entering = entering, None
            if parse_id is not None or entered is None:
                return await self.batcher.vectors.begin(claim, keys, _BEGINS["embed"], entered)
            parse_id, missing = await store_and_begin_embed(
                self.db, choice, claim, source, parsed,
                model_id=self.batcher.vectors.model_id, progress=_BEGINS["embed"], left=entered, keys=keys,
            )  # fmt: skip
            return missing

        embedded = await embed(self.batcher, claim, chunks, begin, stages.report)
        assert parse_id is not None

        left = stages.leave({"embedded": embedded})
        for tries_left in reversed(range(_PUBLISH_TRIES)):
            settling(True)
            try:
                await publish(
                    self.db, claim, chunks,
                    model_id=self.batcher.vectors.model_id, parse_id=parse_id, title=parsed.title, left=left,
                    detail={"pages": len(parsed.pages), "chunks": len(chunks), "embedded": embedded},
                )  # fmt: skip
                stages.published(len(chunks))
                return
            except VectorsMissing:
                settling(False)
                if not tries_left:
                    raise
                embedded += await embed(self.batcher, claim, chunks, begin, _nothing)


class _Stages:
    """Tells the job which stage it is in, and how far.

    Each telling is a round trip, which is most of what a small document costs: stages that are over in a few
    milliseconds are told together with the next one that is not.
    """

    def __init__(self, db: Database, claim: Claim, clock: Callable[[], float]) -> None:
        self._db = db
        self._claim = claim
        self._clock = clock
        self._since = self._told = self._reported = clock()
        self._stage: Stage = "fetch"
        self._left: list[dict[str, object]] = []

    async def enter(self, stage: Stage, detail: Mapping[str, object], *, short: bool = False) -> None:
        """Leave the stage before with this detail; `short` says that the new one is expected to be over at once."""
        if short and self._clock() - self._told < _SHORT_SECONDS:
            self.leave(detail)
            self._stage = stage
            return
        left = self.follow(stage, detail)
        await self._db.fetchval("enter_stage", self._claim.job_id, self._claim.number, stage, _BEGINS[stage], left)

    def follow(self, stage: Stage, detail: Mapping[str, object]) -> str:
        """Enter a stage that the caller tells, with this JSON of all that were left and are not told yet."""
        left = self.leave(detail)
        self._stage = stage
        self._left, self._told = [], self._since
        return left

    def leave(self, detail: Mapping[str, object]) -> str:
        """End the stage, and return in JSON all that were left and are not told yet."""
        now = self._clock()
        metrics.STAGE_SECONDS.labels(self._stage).observe(now - self._since)
        self._left.append({"stage": self._stage, "seconds": round(now - self._since, 6), "detail": detail})
        self._since = now
        return json.dumps(self._left)

    def published(self, chunks: int) -> None:
        """Count what is published now."""
        metrics.STAGE_SECONDS.labels("publish").observe(self._clock() - self._since)
        metrics.CHUNKS.inc(chunks)

    async def report(self, share: float) -> None:
        """Move the bar inside the stage, at most once a second: each move is a row that people see."""
        now = self._clock()
        if now - self._reported < _PROGRESS_SECONDS:
            return
        self._reported = now
        begin = _BEGINS[self._stage]
        progress = begin + share * (min(b for b in [*_BEGINS.values(), 1.0] if b > begin) - begin)
        await self._db.fetchval("report_progress", self._claim.job_id, self._claim.number, progress)


async def _nothing(_share: float) -> None:
    pass

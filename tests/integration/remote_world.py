"""A worker's parts whose parser is a script: the database, the pipeline, the sandbox and the embedder are real."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from tests.database.project import Project
from tests.reading import local_parser
from tests.remote_parser import ScriptedParser
from worker.db.pool import Database
from worker.model import Claim, ModelId, Parsed
from worker.pipeline.embed.batcher import Batcher
from worker.pipeline.embed.local import LocalEmbedder
from worker.pipeline.embed.vectors import Vectors
from worker.pipeline.fetch import ObjectStore
from worker.pipeline.ingest import Ingest
from worker.pipeline.limits import Limits
from worker.pipeline.parse.choose import Parsers
from worker.pipeline.parse.parser import Lost
from worker.queue.attempt import Attempts
from worker.queue.leases import Held
from worker.queue.polls import Polls, Sent

NOTE = b"# Tides\n\nThe tide at the north pier rises four metres twice a day.\n"
PAGES = (
    "# Tides\n\nThe tide at the north pier rises four metres.",
    "It falls again after six hours and twelve minutes.",
)
LOST = Lost("parse_job_unknown", "It was lost.")


class Files:
    """Stands where Storage does: gives out bytes by name."""

    def __init__(self) -> None:
        self.bytes: dict[str, bytes] = {}

    async def download(self, bucket: str, name: str, path: Path, *, max_bytes: int) -> tuple[int, bytes]:
        data = self.bytes[name]
        path.write_bytes(data)
        return len(data), hashlib.sha256(data).digest()


class World:
    """A worker without its loop: claims, attempts and polls happen when a test says so."""

    def __init__(self, sql: Project, db: Database, embedder: LocalEmbedder, directory: Path) -> None:
        self.sql = sql
        self.db = db
        self.parser = ScriptedParser()
        self.local = local_parser()
        self.files = Files()
        self.spent: list[tuple[Sent, Parsed]] = []
        self._count_tokens = embedder.count_tokens
        self.batcher = Batcher(embedder, Vectors(db, ModelId(1)), Limits(db, random.Random(1)))
        self._directory = directory

    def attempts(self, *, cheap_first: bool = False, local: bool = True) -> Attempts:
        parsers = Parsers(self.parser, self.local if local else None, cheap_first)
        work = Ingest(
            self.db, cast(ObjectStore, self.files), parsers, self.batcher, self._count_tokens,
            max_file_bytes=10_000_000, max_chunk_tokens=200,
        )  # fmt: skip
        return Attempts(self.db, work, self._directory, 60, random.Random(1))

    async def upload(self, tenant: UUID, name: str = "tides.md", data: bytes = NOTE) -> UUID:
        self.files.bytes[f"{tenant}/{name}"] = data
        return await self.sql.upload(tenant, name, len(data))

    async def claim(self) -> list[Claim]:
        rows = await self.sql.claim()
        return [Claim(number=row["claim"], **{k: v for k, v in row.items() if k != "claim"}) for row in rows]

    async def work(self, **how: bool) -> int:
        """Attempt everything that is due, once; return how many jobs that were."""
        claims = await self.claim()
        attempts = self.attempts(**how)
        await asyncio.gather(*(attempts.run(Held(claim)) for claim in claims))
        return len(claims)

    async def poll(self) -> None:
        """Let the time until the next poll pass, and poll."""

        async def spent(sent: Sent, parsed: Parsed) -> None:
            self.spent.append((sent, parsed))

        await self.sql.owner.execute("update ingest.parses set next_poll_at = now() where state = 'waiting'")
        await Polls(self.db, self.parser, spent).take_turn()

    async def parse(self) -> Any:
        row = await self.sql.owner.fetchrow("select *, next_poll_at - now() as pause from ingest.parses")
        assert row is not None
        return row

    async def job(self) -> Any:
        row = await self.sql.owner.fetchrow("select * from public.jobs order by id limit 1")
        assert row is not None
        return row

    async def details(self, event: str = "stage") -> list[dict[str, Any]]:
        rows = await self.sql.owner.fetch(
            "select detail from public.job_events where event = $1 and detail is not null order by id", event
        )
        return [json.loads(row["detail"]) for row in rows]

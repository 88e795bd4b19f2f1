"""The demo, step by step: sign up, upload, watch, ask, and look again with a stranger's eyes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import asyncpg
from rich.console import Console

from local import samples
from local.demo.citation import one_line, page_at, passage
from local.demo.client import Client, ClientError
from local.demo.files import Upload
from local.demo.following import Following
from local.demo.progress import Display, Row, display
from local.demo.report import (
    Answered,
    Failure,
    Hit,
    Report,
    print_failures,
    print_isolation,
    print_question,
    print_summary,
)
from local.stack import Stack
from local.worker_process import Worker
from worker.pipeline.embed.local import LocalEmbedder

HITS = 10
_UPLOADS_AT_A_TIME = 3
_COUNT_EMBEDDINGS = Path(__file__).with_name("embeddings.sql")


class Demo:
    """One run over a started stack and worker; `run` fills `report`."""

    def __init__(self, stack: Stack, worker: Worker, client: Client, embedder: LocalEmbedder, console: Console) -> None:
        self.report = Report()
        self._stack = stack
        self._worker = worker
        self._client = client
        self._embedder = embedder
        self._console = console
        self._owner_id = ""

    async def run(self, files: Sequence[Upload], questions: Sequence[str] | None, timeout: float) -> None:
        """Do everything once. `questions` None asks the samples' own where these are the samples, else headings.

        Raises StackError when the worker ends, ClientError when Supabase refuses what must work.
        """
        self._owner_id = (await self._client.ask("owner", "signUp", email="owner@example.com"))["id"]
        await self._client.ask("stranger", "signUp", email="stranger@example.com")
        self._console.print("Signed up two users: the owner uploads, the stranger must see nothing of it.")

        rows = await self._ingest(files, timeout)
        await self._count(rows)
        print_failures(self._console, self.report)
        ready = [row for row in rows if row.state == "ready"]
        if ready:
            await self._ask([*questions] if questions else await self._own_questions(ready))
            await self._look_as_stranger(ready[0])
        print_summary(self._console, self.report)

    async def _ingest(self, files: Sequence[Upload], timeout: float) -> list[Row]:
        rows = [Row(file.name) for file in files]
        began = time.monotonic()
        with display(self._console) as shown:
            following = asyncio.ensure_future(self._upload_and_follow(files, rows, shown))
            ending = asyncio.ensure_future(self._worker.ended())
            try:
                await asyncio.wait({following, ending}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    await ending
                if following.done():
                    await following
            finally:
                for task in (following, ending):
                    task.cancel()
                await asyncio.gather(following, ending, return_exceptions=True)
        self.report.seconds = round(time.monotonic() - began, 2)
        for row in rows:
            if not row.settled:
                row.code = row.code or "not_finished"
                row.message = f"Still {row.doing} after {timeout:.0f} s. {row.message or 'Allow more with --timeout.'}"
        return rows

    async def _upload_and_follow(self, files: Sequence[Upload], rows: Sequence[Row], shown: Display) -> None:
        gate = asyncio.Semaphore(_UPLOADS_AT_A_TIME)
        following = Following(rows)
        self._client.told = following.hear
        uploads = asyncio.gather(*(self._upload(file, row, gate) for file, row in zip(files, rows, strict=True)))
        try:
            while not all(row.settled for row in rows):
                if await following.stirred():
                    await self._look(rows)
                shown.show(rows)
        finally:
            self.report.messages = following.messages
            uploads.cancel()
            await asyncio.gather(uploads, return_exceptions=True)

    async def _upload(self, file: Upload, row: Row, gate: asyncio.Semaphore) -> None:
        async with gate:
            try:
                given = {"path": str(file.path), "name": file.name, "contentType": file.content_type}
                row.id = (await self._client.ask("owner", "upload", **given))["id"]
            except ClientError as error:
                row.state, row.code, row.message = "refused", error.code, error.message
                return
        with contextlib.suppress(ClientError):  # then the tables are read often
            await self._client.ask("owner", "follow", document=row.id)

    async def _look(self, rows: Sequence[Row]) -> None:
        """Read the owner's document and job rows, as the owner."""
        seen = await self._client.ask("owner", "progress")
        documents = {document["id"]: document for document in seen["documents"]}
        jobs: dict[tuple[str, int], dict[str, Any]] = {
            (job["document_id"], job["generation"]): job for job in seen["jobs"]
        }
        for row in rows:
            document = documents.get(row.id) if row.id else None
            if document is not None:
                row.see(document, jobs.get((document["id"], document["generation"])))

    async def _count(self, rows: Sequence[Row]) -> None:
        report = self.report
        report.documents = len(rows)
        report.ready = sum(row.state == "ready" for row in rows)
        report.pages = sum(row.pages or 0 for row in rows if row.state == "ready")
        report.chunks = sum(row.chunks or 0 for row in rows if row.state == "ready")
        connection = await asyncpg.connect(self._stack.database_url)
        try:
            report.embeddings = await connection.fetchval(_COUNT_EMBEDDINGS.read_text())
        finally:
            await connection.close()
        report.failures = [
            Failure(row.name, row.code or "unknown", row.message or "No reason was given.")
            for row in rows
            if row.state != "ready"
        ]

    async def _own_questions(self, ready: Sequence[Row]) -> list[str]:
        """Two things to ask of documents that nobody gave a question for: what they call themselves and their parts."""
        names = {row.name for row in ready}
        if all(question.document in names for question in samples.QUESTIONS):
            return [question.ask for question in samples.QUESTIONS]
        of_each = []
        for row in ready[:2]:
            headings = await self._client.ask("owner", "headings", document=row.id)
            title = row.title or Path(row.name).stem.replace("_", " ").replace("-", " ")
            of_each.append([one_line(text)[:200] for text in (*headings[len(headings) // 2 :][:1], title)])
        # One of each document before a second one of the first.
        return list(dict.fromkeys(text for texts in zip_longest(*of_each) for text in texts if text))[:2]

    async def _ask(self, questions: Sequence[str]) -> None:
        isolation = self.report.isolation
        for question in questions:
            vector = (await self._embedder.embed([question]))[0].tolist()
            given = {"query": question, "embedding": vector, "count": HITS}
            found, foreign = await asyncio.gather(
                self._client.ask("owner", "search", **given), self._client.ask("stranger", "search", **given)
            )
            isolation.owner_hits += len(found)
            isolation.stranger_hits += len(foreign)
            answered = Answered(question, [await self._cite(hit, question) for hit in found])
            self.report.questions.append(answered)
            print_question(self._console, answered)

    async def _cite(self, hit: dict[str, Any], question: str) -> Hit:
        content, page = hit["content"], hit["page_start"]
        start, end = passage(content, question)
        if hit["page_end"] > page:
            touched = await self._client.ask(
                "owner", "pages", document=hit["document_id"], first=page, last=hit["page_end"]
            )
            page = page_at(content, (start + end) // 2, page, [row["markdown"] for row in touched])
        return Hit(
            document=hit["document_name"].split("/", 1)[1],
            page=page,
            snippet=("… " if start else "") + one_line(content[start:end]) + (" …" if end < len(content) else ""),
            heading=hit["heading_path"][-1] if hit["heading_path"] else None,
            similarity=None if hit["similarity"] is None else round(hit["similarity"], 3),
        )

    async def _look_as_stranger(self, row: Row) -> None:
        isolation = self.report.isolation
        given = {"owner": self._owner_id, "object": row.name}
        for who, name in (("owner", "owner_rows"), ("stranger", "stranger_rows")):
            seen = await self._client.ask(who, "counts", **given)
            setattr(isolation, name, sum(seen.values()))
        isolation.stranger_may_write = await self._client.ask("stranger", "mayWriteTo", owner=self._owner_id)
        print_isolation(self._console, isolation)

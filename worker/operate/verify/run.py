"""One run, from signing up to cleaning up.

sign up, sign in again ─► upload ─► wait ─► examine ─► search ─► a stranger looks ─► change ─► clean up
                                                                                               ▲
a failure, the end of the time and Ctrl-C go there at once ────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from worker.db.pool import Database
from worker.errors import IngestError, Transient
from worker.operate.verify import record
from worker.operate.verify.artifacts import Tools, Uploaded, bill, examine
from worker.operate.verify.changes import Changes
from worker.operate.verify.checks import Checks
from worker.operate.verify.cleanup import clean_up
from worker.operate.verify.documents import ACCEPTANCE, Given
from worker.operate.verify.isolation import check_isolation
from worker.operate.verify.person import Person, Refused, Target, nobody, signed_up
from worker.operate.verify.reader import read_pages, without_running_heads
from worker.operate.verify.search import check_search
from worker.pipeline.embed.embedder import Embedder
from worker.pipeline.fetch import ObjectStore

BUCKET = "documents"
_FINAL = ("ready", "failed", "cancelled")
_LOOK_SECONDS = 0.3
_CLEAN_UP_SECONDS = 120.0


@dataclass(slots=True)
class Asked:
    """What a run is told: which target under which name, how long it may take, and what is recorded besides."""

    run_id: str
    target: Target
    target_name: str
    seconds: float
    chunk_tokens: int
    git_sha: str | None = None
    worker_log: Path | None = None
    secrets: Sequence[str] = ()


async def _nothing(_run: Run) -> None:
    pass


@dataclass(slots=True)
class Run:
    """A run under way. `step` is told what happens, `progress` the documents while they are waited for.

    `published` is called when all documents are ready and before anything of them is read.
    """

    asked: Asked
    given: Sequence[Given]
    db: Database
    store: ObjectStore
    embedder: Embedder | None
    directory: Path
    step: Callable[[str], None] = print
    progress: Callable[[list[dict[str, Any]]], None] = lambda _rows: None
    published: Callable[[Run], Awaitable[None]] = _nothing
    checks: Checks = field(default_factory=Checks)
    users: list[str] = field(default_factory=list)
    objects: set[tuple[str, str]] = field(default_factory=set)
    documents: list[Uploaded] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    async def run(self) -> dict[str, Any]:
        """Do it all and return the report; Ctrl-C (a cancelled task) and failures are in it, after the clean-up."""
        began = time.monotonic()
        self.report = {
            "format": record.FORMAT, "run_id": self.asked.run_id, "target": self.asked.target_name,
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": 0.0,
            "ok": False, "interrupted": False,
            "acceptance": "whole" if len(self.given) == len(ACCEPTANCE) else "partial: a document was not given",
            "versions": {"git_sha": self.asked.git_sha, "packages": record.packages()},
            "documents": [], "search": {}, "rows": {}, "costs": [], "checks": [], "left": {}, "log": [],
        }  # fmt: skip
        whole = False
        try:
            try:
                await self._verify()
                whole = True
            except asyncio.CancelledError:
                self.report["interrupted"] = True
            except (IngestError, Refused) as exc:
                said = exc.public_message if isinstance(exc, IngestError) else str(exc)
                self.checks.add("run.finished", "run", False, said)
        finally:
            await self._clean_up(whole=whole)
        self.report["checks"] = self.checks.told()
        self.report["ok"] = whole and not self.checks.failed
        self.report["seconds"] = round(time.monotonic() - began, 2)
        self.report["log"] = record.last_lines(self.asked.worker_log, self.asked.secrets)
        return self.report

    async def _verify(self) -> None:
        facts = json.loads(await self.db.fetchval("target_facts"))
        workers = facts.get("workers") or []
        self.report["versions"] |= facts
        if workers and workers[0].get("git_sha"):
            self.report["versions"]["git_sha"] = workers[0]["git_sha"]
        async with AsyncExitStack() as people:
            self.step("Signing up")
            owner = await people.enter_async_context(
                signed_up(self.asked.target, self.asked.run_id, "owner", self.users)
            )
            await self._same_person(owner)
            await self._ingest(owner)
            await self.published(self)
            await self._examine(owner)
            self.step("Looking as a second user and as nobody")
            strangers = {
                "stranger": await people.enter_async_context(
                    signed_up(self.asked.target, self.asked.run_id, "stranger", self.users)
                ),
                "nobody": await people.enter_async_context(nobody(self.asked.target)),
            }
            queries = [query for query in self.report["search"].pop("queries") if query]
            await check_isolation(owner, strangers, self.documents, queries, self.db, self.embedder, self.checks)
            self.step("Storing twice, overwriting, moving, deleting")
            await Changes(
                owner,
                self.documents[0],
                self.asked.run_id,
                self._tools(),
                self.checks,
                self.objects,
                self.asked.seconds,
            ).check()

    async def _same_person(self, owner: Person) -> None:
        await owner.sign_in()
        known = await owner.known_as()
        same = {owner.id, known, *owner.subjects}
        self.checks.add(
            "auth.subject", "owner", len(same) == 1 and len(owner.subjects) > 1,
            f"{len(owner.subjects)} tokens, {len(same)} subject{'s' if len(same) > 1 else ''}",
        )  # fmt: skip

    async def _ingest(self, owner: Person) -> None:
        """Upload all, then wait until all are ready, while the independent reader reads them here."""
        self.step(f"Uploading {' and '.join(given.known.name for given in self.given)}")
        began = time.monotonic()
        uploads = await asyncio.gather(*(self._upload(owner, given) for given in self.given))
        found = {row["name"]: row["id"] for row in await owner.rows("documents")}
        for given, (name, seconds) in zip(self.given, uploads, strict=True):
            if not self.checks.add("upload.document", given.known.name, name in found, f"uploaded in {seconds} s"):
                raise Transient("no_document", "An upload made no document. Is the trigger on storage.objects there?")
            self.documents.append(Uploaded(given, BUCKET, name, UUID(found[name]), upload_seconds=seconds))
        reading = asyncio.gather(*(read_pages(document.given.path) for document in self.documents))
        try:
            self.step("Waiting until they are searchable")
            await self._wait(owner, began)
            for document, pages in zip(self.documents, await reading, strict=True):
                document.read = without_running_heads(pages)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _upload(self, owner: Person, given: Given) -> tuple[str, float]:
        name = f"{owner.id}/verify-{self.asked.run_id}/{given.known.name}"
        self.objects.add((BUCKET, name))
        began = time.monotonic()
        await owner.upload(BUCKET, name, given.content, "application/pdf")
        return name, round(time.monotonic() - began, 3)

    async def _wait(self, owner: Person, began: float) -> None:
        try:
            async with asyncio.timeout(self.asked.seconds):
                while True:
                    rows, jobs = await asyncio.gather(owner.rows("documents"), owner.rows("jobs"))
                    if self._seen(rows, jobs, began):
                        return
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise Transient(
                "not_ready",
                f"The documents are not searchable after {self.asked.seconds:.0f} s. Does a worker run for this "
                "target? `sluice jobs list` shows where they are; allow more with --timeout.",
            ) from None

    def _seen(self, rows: list[dict[str, Any]], jobs: list[dict[str, Any]], began: float) -> bool:
        shown, by_id = [], {row["id"]: row for row in rows}
        for document in self.documents:
            row = by_id.get(str(document.id), {})
            job: dict[str, Any] = next((job for job in jobs if job["document_id"] == str(document.id)), {})
            if row.get("state") == "ready" and not document.ready_seconds:
                document.ready_seconds = round(time.monotonic() - began, 2)
            if row.get("state") in ("failed", "cancelled"):
                raise Transient(
                    row["error_code"] or "failed",
                    f"{document.title} {row['state']}: {row['error_code']}, {row['error_message']}",
                )
            shown.append({"name": document.title, "state": row.get("state"), "stage": job.get("stage"),
                          "progress": job.get("progress")})  # fmt: skip
        self.progress(shown)
        return all(document.ready_seconds for document in self.documents)

    async def _examine(self, owner: Person) -> None:
        self.step("Reading every artifact back")
        tools = self._tools()
        kept = [await examine(document, tools, self.checks) for document in self.documents]
        self.report["documents"] = kept
        models = {document["name"]: document.get("model") for document in kept}
        self.report["costs"] = await bill(self.documents, UUID(owner.id), models, tools, self.checks)
        self.report["rows"] = json.loads(await self.db.fetchval("rows_of", [UUID(owner.id)]))
        self.step("Searching")
        queries = []
        for document in self.documents:
            query, ranks = await check_search(document, owner, self.embedder, self.checks)
            queries.append(query)
            self.report["search"][document.title] = ranks
        self.report["search"]["queries"] = queries

    def _tools(self) -> Tools:
        return Tools(self.db, self.store, self.directory, self.embedder, self.asked.chunk_tokens)

    async def _clean_up(self, *, whole: bool) -> None:
        self.report["search"].pop("queries", None)  # a sentence of the document
        self.step("Removing what this run made")
        try:
            async with asyncio.timeout(_CLEAN_UP_SECONDS):
                # Ctrl-C may have come while a sign-up was on its way.
                made = [str(row["users_of_run"]) for row in await self.db.fetch("users_of_run", self.asked.run_id)]
                self.users += [user for user in made if user not in self.users]
                self.report["left"] = await clean_up(
                    self.db, self.store, self.asked.target, self.users, self.objects, self.checks,
                    whole=whole or not self.objects,
                )  # fmt: skip
        except (TimeoutError, IngestError) as exc:
            ids = ", ".join(self.users)
            why = exc.public_message if isinstance(exc, IngestError) else f"not done within {_CLEAN_UP_SECONDS:.0f} s"
            seen = f"{why} As the owner: sluice erase TENANT, for each of {ids}, and remove these users"
            self.checks.add("cleanup.left", "run", False, seen)

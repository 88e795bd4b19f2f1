"""What must hold after every run, whatever was done to it; read from the database and the stored bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from tests.chaos.database import Observer
from tests.chaos.traffic import Accepted
from tests.chaos.vectors import MODEL, count_tokens, vector_of
from worker.model import Page
from worker.pipeline.chunk import chunk


@dataclass
class Findings:
    """What is wrong, in words; nothing is."""

    lost: list[str] = field(default_factory=list)
    discarded_innocent: list[str] = field(default_factory=list)
    committed_twice: list[str] = field(default_factory=list)
    stale_documents: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    attempts_charged_by_429: list[str] = field(default_factory=list)
    broken_claims: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return how many of each."""
        return {name: len(found) for name, found in vars(self).items()}


async def check(observer: Observer, accepted: Sequence[Accepted], blobs: Path) -> Findings:
    """Compare what was accepted with what is there."""
    found = Findings()
    objects = {row["name"]: row for row in await observer.fetch("objects")}
    chunks: dict[Any, list[Any]] = {}
    for part in await observer.fetch("chunks"):
        chunks.setdefault(part["document_id"], []).append(part)

    for file in accepted:
        row: Any = objects.get(file.name)
        if file.content is None:
            if row is not None:
                found.orphans.append(f"deleted, but there: {file.name}")
            continue
        if row is None:
            found.lost.append(f"not stored: {file.name}")
            continue
        said = f"{file.name}: {row['state']} generation {row['generation']}, {row['jobs']}"
        stored = (blobs / row["version"]).read_bytes()
        if stored != file.content and stored not in file.unanswered:
            found.lost.append(f"other bytes are stored: {said}")
        elif file.poison is not None:
            # By its own code, or by another fault on its last attempt: it is not spared.
            if row["state"] != "failed":
                found.lost.append(f"poison ({file.poison}) without its verdict: {said}")
        elif row["state"] == "failed":
            found.discarded_innocent.append(f"{said}: {await observer.value('timeline', row['id'])}")
        elif row["state"] != "ready" or row["published_generation"] != row["generation"]:
            found.lost.append(f"{said}: {await observer.value('timeline', row['id'])}")
        elif not _is_of(chunks.get(row["id"], []), stored):
            found.stale_documents.append(f"{said}: {await observer.value('timeline', row['id'])}")
    for name in set(objects) - {file.name for file in accepted}:
        found.orphans.append(f"object that nobody keeps: {name}")

    found.committed_twice += [row[0] for row in await observer.fetch("twice")]
    found.orphans += [row[0] for row in await observer.fetch("orphans")]
    found.attempts_charged_by_429 += [f"job {row[0]}" for row in await observer.fetch("charged_by_429")]
    found.broken_claims += [f"job {row[0]}" for row in await observer.fetch("broken_claims")]
    return found


def _is_of(rows: list[Any], content: bytes) -> bool:
    """Whether these chunks are exactly those of the bytes, each with the vector of its text."""
    pages = [Page(number, page) for number, page in enumerate(content.decode().split("\f"), 1)]
    wanted = chunk(pages, count_tokens=count_tokens, max_tokens=MODEL.max_tokens)
    if [(r["ordinal"], r["content"]) for r in rows] != [(c.ordinal, c.content) for c in wanted]:
        return False
    return all(
        r["embedding"] is not None
        and np.allclose(np.fromstring(r["embedding"].strip("[]"), sep=","), vector_of(c.embedding_text), atol=1e-3)
        for r, c in zip(rows, wanted, strict=True)
    )


def left_behind(directory: Path, pids: set[int]) -> list[str]:
    """Return files and processes that the workers left."""
    files = [f"left in the work directory: {path.name}" for path in sorted(directory.iterdir())]
    processes = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.info["pid"] != os.getpid() and any(f'"parent": {pid},' in line for pid in pids):
            processes.append(f"left running: process {process.info['pid']}")
    return files + processes


async def recoveries(observer: Observer) -> list[float]:
    """Return, for each job held by a killed worker, the seconds until it was rescued; sorted."""
    return [row["seconds"] for row in await observer.fetch("recoveries")]

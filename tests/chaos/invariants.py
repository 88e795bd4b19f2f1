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
from tests.chaos.traffic import Accepted, Poison
from tests.chaos.vectors import MODEL, count_tokens, vector_of
from worker.model import Page
from worker.pipeline.chunk import chunk

_CODES: dict[Poison, str] = {
    "refused": "provider_refused",
    "kills its parser": "parser_crashed",
    "kills its worker": "worker_lost",
}
_OBJECTS = """
select o.id, o.name, o.version, d.state::text, d.generation, d.published_generation, d.error_code, d.chunk_count,
       (select string_agg(format('job %s %s %s attempt %s rescues %s %s', j.id, j.generation, j.state, j.attempt, j.rescues,
                                 j.error_code), '; ' order by j.id) from public.jobs j where j.document_id = o.id) as jobs
  from storage.objects o left join public.documents d on d.id = o.id
 where o.bucket_id = 'documents'
"""
_CHUNKS = """
select c.document_id, c.ordinal, c.content, c.char_start, c.char_end, e.embedding::text
  from public.chunks c
  left join ingest.embedding_models m on m.active
  left join ingest.embeddings e on e.model_id = m.id and e.tenant_id = c.tenant_id and e.content_sha256 = c.content_sha256
 order by c.document_id, c.ordinal
"""
_TWICE = """
select 'document ' || document_id || ' generation ' || generation from chaos.publications group by document_id, generation having count(*) > 1
union all select 'job ' || job_id from chaos.completions group by job_id having count(*) > 1
union all select 'job ' || job_id || ' of one generation again' from (
  select max(id) as job_id from public.jobs where state = 'completed' group by document_id, generation having count(*) > 1) j
"""
_ORPHANS = """
select 'chunk without document ' || c.document_id from public.chunks c where not exists (select 1 from public.documents d where d.id = c.document_id)
union all select 'document without object ' || d.id from public.documents d where not exists (select 1 from storage.objects o where o.id = d.id)
union all select 'lease of job ' || l.job_id from ingest.leases l
union all select 'running without lease: job ' || j.id from public.jobs j where j.state = 'running' and not exists (select 1 from ingest.leases l where l.job_id = j.id)
union all select 'connection of ' || application_name from pg_stat_activity where application_name like 'sluice%'
union all select 'turn of tenant ' || t.tenant_id from ingest.turns t where not exists (select 1 from public.jobs j where j.tenant_id = t.tenant_id and j.state = 'available')
          and t.due_at < now() - interval '1 minute'
"""
# A 429 takes back the attempt that its claim charged, and never ends or charges a job.
_CHARGED = """
select e.job_id from public.job_events e where e.error_code = 'provider_rate_limited' and (e.event in ('retry', 'discard')
   or e.event = 'snooze' and e.attempt <> (select c.attempt - 1 from public.job_events c where c.job_id = e.job_id and c.claim = e.claim and c.event = 'claim'))
"""
_BROKEN_CLAIMS = """
select job_id from (select job_id, claim, lag(claim) over (partition by job_id order by id) as before from public.job_events where event = 'claim') c
 where before >= claim
union all select id from public.jobs where attempt > max_attempts
"""
_RECOVERY = """
select extract(epoch from min(e.at) - k.at)::float8 as seconds from chaos.kills k
  join public.job_events e on e.job_id = k.job_id and e.claim = k.claim and e.event = 'rescue'
 group by k.at, k.job_id
"""


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
    objects = {row["name"]: row for row in await observer.fetch(_OBJECTS)}
    chunks: dict[Any, list[Any]] = {}
    for row in await observer.fetch(_CHUNKS):
        chunks.setdefault(row["document_id"], []).append(row)

    for file in accepted:
        row = objects.get(file.name)
        if file.content is None:
            if row is not None:
                found.orphans.append(f"deleted, but there: {file.name}")
            continue
        if row is None:
            found.lost.append(f"not stored: {file.name}")
            continue
        said = f"{file.name}: {row['state']} generation {row['generation']}, {row['jobs']}"
        stored = (blobs / row["version"]).read_bytes()
        if stored != file.content:
            found.lost.append(f"other bytes are stored: {said}")
        elif file.poison is not None:
            if (row["state"], row["error_code"]) != ("failed", _CODES[file.poison]):
                found.lost.append(f"poison ({file.poison}) without its verdict: {said}")
        elif row["state"] == "failed":
            found.discarded_innocent.append(said)
        elif row["state"] != "ready" or row["published_generation"] != row["generation"]:
            found.lost.append(said)
        elif not _is_of(chunks.get(row["id"], []), stored):
            found.stale_documents.append(said)
    for name in set(objects) - {file.name for file in accepted}:
        found.orphans.append(f"object that nobody keeps: {name}")

    found.committed_twice += [row[0] for row in await observer.fetch(_TWICE)]
    found.orphans += [row[0] for row in await observer.fetch(_ORPHANS)]
    found.attempts_charged_by_429 += [f"job {row[0]}" for row in await observer.fetch(_CHARGED)]
    found.broken_claims += [f"job {row[0]}" for row in await observer.fetch(_BROKEN_CLAIMS)]
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
    return sorted(row["seconds"] for row in await observer.fetch(_RECOVERY))

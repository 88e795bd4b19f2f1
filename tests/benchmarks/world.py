"""What is measured, and with what: a fresh local stack, W1's documents in it, the provider's double, one run at a time.

A run starts a worker (or the bare loop) as a process of its own beside work that waits already, and watches it from
outside: the processor time and the memory of its process by /proc, what is left to do by one cheap question every ten
milliseconds, and the requests by what the double has counted. Its first request divides start-up from steady work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psutil  # type: ignore[import-untyped]

from local import deno
from local.stack import Stack
from local.worker_process import working
from tests.benchmarks import reference
from tests.benchmarks.documents import document

MODEL = "text-embedding-3-small"
DIMENSIONS = 1536
CHUNK_TOKENS = 336
"""Chunks end at headings, so a limit of 256 would make many small ones; with this they have 254 tokens in the mean."""
REFERENCE_TOKENS = 256
_LOOK_SECONDS = 0.01
_EMPTY = """
    truncate public.jobs, ingest.job_details, ingest.leases, ingest.turns, public.job_events, public.chunks,
      public.documents, public.pages, ingest.parses, ingest.embeddings, ingest.usage, ingest.usage_days,
      storage.objects, bare.documents, bare.chunks cascade"""
_LEFT = {
    "worker": "select count(*) from public.jobs where state in ('available', 'running')",
    "reference": "select count(*) from bare.documents where not done",
}


class Provider:
    """The double's process; see provider.py."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.pid = process.pid
        self.port = port

    async def reset(self, **manner: Any) -> None:
        """Answer like this from now on, and count from zero."""
        await self._ask("POST", "/reset", manner)

    async def counts(self) -> dict[str, Any]:
        """Return what it has counted."""
        counted: dict[str, Any] = await self._ask("GET", "/counts")
        return counted

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        content = json.dumps(body).encode() if body is not None else b""
        writer.write(f"{method} {path} HTTP/1.1\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)
        head = await reader.readuntil(b"\r\n\r\n")
        answer = await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
        writer.close()
        return json.loads(answer)


@contextlib.asynccontextmanager
async def provider() -> AsyncIterator[Provider]:
    """Run the double as a child."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "tests.benchmarks.provider", cwd=deno.REPOSITORY, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, env=deno.environment({"PYTHONPATH": str(deno.REPOSITORY)}),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield Provider(process, int(await process.stdout.readline()))
    finally:
        process.stdin.close()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a worker or of the bare loop; seconds, megabytes, and processor milliseconds."""

    chunks: int
    steady: float
    """From the first request to the last commit."""
    total: float
    """From the start of the process to the last commit."""
    cpu: float
    """Seconds of processor time from the first request on."""
    cpu_total: float
    postgres_cpu: float
    peak_rss_mb: float
    counts: dict[str, Any] = field(repr=False)
    left: dict[str, int] = field(default_factory=dict)
    """Documents by state at the end."""

    @property
    def rate(self) -> float:
        """Chunks a second of steady work."""
        return self.chunks / self.steady


class World:
    """A stack with a tenant and documents; `admin` is the superuser's connection."""

    def __init__(self, stack: Stack, admin: asyncpg.Connection, double: Provider, directory: Path) -> None:
        self.stack = stack
        self.admin = admin
        self.double = double
        self.directory = directory
        self.tenant: UUID = uuid4()
        self.texts: list[str] = []

    async def prepare(self, documents: int, poison: str = "") -> None:
        """Make the tenant, register the model, and write the documents' files; `poison` is put into one of them."""
        await self.admin.execute("insert into auth.users (id, email) values ($1, 'w1@example.org')", self.tenant)
        await self.admin.execute(
            "select ingest.activate_embedding_model(ingest.add_embedding_model('openai', $1, $2))", MODEL, DIMENSIONS
        )
        await self.admin.execute(reference.SCHEMA)
        self.texts = [document(number) for number in range(documents)]
        if poison:
            self.texts[documents // 2] += f"\n{poison}\n"
        self._versions = [str(uuid4()) for _ in self.texts]
        for version, text in zip(self._versions, self.texts, strict=True):
            self._file(version, text)

    def _file(self, version: str, text: str) -> None:
        (self.stack.directory / "storage" / version).write_text(text, encoding="utf-8")

    async def empty(self) -> None:
        """Forget all documents, and what was made of them."""
        await self.admin.execute("set session_replication_role = replica")
        await self.admin.execute(_EMPTY)
        await self.admin.execute("reset session_replication_role")

    async def fill(self, *, bare: bool) -> None:
        """Let all documents wait: for the bare loop, or as uploads whose jobs the trigger made."""
        await self.empty()
        if bare:
            await self.admin.copy_records_to_table(
                "documents", schema_name="bare", columns=["id", "content"], records=list(enumerate(self.texts))
            )
        else:
            await self.insert(range(len(self.texts)))
        await self.admin.execute("analyze public.jobs, public.documents, bare.documents")
        await self.admin.execute("checkpoint")

    async def insert(self, numbers: Sequence[int]) -> None:
        """Make these documents' objects appear in Storage, in one transaction."""
        await self.admin.execute(
            "insert into storage.objects (bucket_id, name, version, metadata)"
            " select 'documents', $1 || '/' || n || '.md', v,"
            " jsonb_build_object('size', s, 'contentLength', s, 'mimetype', 'text/markdown', 'eTag', '\"' || n || '\"',"
            " 'httpStatusCode', 200, 'cacheControl', 'no-cache', 'lastModified', now())"
            " from unnest($2::int[], $3::text[], $4::int[]) as given (n, v, s)",
            str(self.tenant), list(numbers), [self._versions[number] for number in numbers],
            [len(self.texts[number].encode()) for number in numbers],
        )  # fmt: skip

    async def new_document(self, number: int) -> None:
        """Write one more document's file; `insert` makes it appear."""
        assert number == len(self.texts)
        self.texts.append(document(number))
        self._versions.append(str(uuid4()))
        self._file(self._versions[-1], self.texts[-1])

    async def index_vectors(self) -> None:
        """Put an HNSW index with pgvector's own parameters over the model's vectors; `drop_index` removes it."""
        await self.admin.execute(
            f"create index of_vectors on {await self._partition()} using hnsw"
            f" ((embedding::extensions.halfvec({DIMENSIONS})) extensions.halfvec_cosine_ops)"
        )

    async def drop_index(self) -> None:
        """Remove the index over the vectors, where there is one."""
        await self.admin.execute("drop index if exists ingest.of_vectors")

    async def _partition(self) -> str:
        name: str = await self.admin.fetchval(
            "select 'ingest.embeddings_' || id from ingest.embedding_models where provider = 'openai'"
        )
        return name

    def settings(self, concurrency: int, slots: int, **more: str) -> dict[str, str]:
        """Return the settings of a worker that embeds with the double."""
        return {
            "SLUICE_EMBEDDER": "openai", "OPENAI_API_KEY": "bench",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.double.port}/v1",
            "SLUICE_EMBED_MODEL": MODEL, "SLUICE_EMBED_DIMENSIONS": str(DIMENSIONS),
            "SLUICE_EMBED_CONCURRENCY": str(concurrency), "SLUICE_SLOTS": str(slots), "SLUICE_TENANT_CAP": str(slots),
            "SLUICE_CHUNK_TOKENS": str(CHUNK_TOKENS), **more,
        }  # fmt: skip

    async def work(self, settings: dict[str, str], *, seconds: float = 300, module: str = "worker") -> Run:
        """Run a worker until no job is left."""
        began, before = time.monotonic(), self._postgres_cpu()
        async with working(self.stack, self.directory / "worker.log", module=module, **settings) as worker:
            watched = await self._watch(worker.pid, began, _LEFT["worker"], seconds)
        states = await self.admin.fetch("select state::text, count(*) from public.documents group by state")
        return await self._run(
            watched, "select count(*) from public.chunks", before, {row["state"]: row["count"] for row in states}
        )

    async def refer(self, concurrency: int) -> Run:
        """Run the bare loop until no row is left."""
        began, before = time.monotonic(), self._postgres_cpu()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "tests.benchmarks.reference", "--port", str(self.double.port),
            "--concurrency", str(concurrency), "--tokens", str(REFERENCE_TOKENS), cwd=deno.REPOSITORY,
            stdout=asyncio.subprocess.DEVNULL,
            env=deno.environment({"PYTHONPATH": str(deno.REPOSITORY), "DATABASE_URL": self.stack.admin_url}),
        )  # fmt: skip
        try:
            watched = await self._watch(process.pid, began, _LEFT["reference"], 300)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
        return await self._run(watched, "select count(*) from bare.chunks", before, {})

    async def _watch(self, pid: int, began: float, left: str, seconds: float) -> _Watched:
        """Sample a process until nothing is left to do."""
        process = psutil.Process(pid)
        samples: list[tuple[float, float]] = [(began, 0.0)]
        peak = 0
        async with asyncio.timeout(seconds):
            while True:
                waiting = await self.admin.fetchval(left)
                now = time.monotonic()
                try:
                    spent = process.cpu_times()
                    peak = max(peak, _high_water(pid))
                except (psutil.Error, OSError) as exc:
                    if waiting:
                        raise RuntimeError("it ended before its work did") from exc
                    break
                samples.append((now, spent.user + spent.system + spent.children_user + spent.children_system))
                if not waiting:
                    break
                await asyncio.sleep(_LOOK_SECONDS)
        return _Watched(began, now, samples, peak)

    async def _run(self, watched: _Watched, chunks: str, postgres_before: float, left: dict[str, int]) -> Run:
        counts = await self.double.counts()
        first = counts["first_at"] or watched.ended
        cpu_total = watched.samples[-1][1]
        return Run(
            chunks=await self.admin.fetchval(chunks), steady=watched.ended - first, total=watched.ended - watched.began,
            cpu=cpu_total - watched.cpu_at(first), cpu_total=cpu_total,
            postgres_cpu=self._postgres_cpu() - postgres_before, peak_rss_mb=watched.peak / 1024, counts=counts,
            left=left,
        )  # fmt: skip

    def _postgres_cpu(self) -> float:
        """Return what all of Postgres has spent; backends that ended are in the postmaster's children."""
        postmaster = psutil.Process(self.stack.cluster.pid)
        spent = 0.0
        for process in [postmaster, *postmaster.children()]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                spent += times.user + times.system
        children = postmaster.cpu_times()
        return spent + float(children.children_user) + float(children.children_system)


@dataclass(frozen=True, slots=True)
class _Watched:
    began: float
    ended: float
    samples: list[tuple[float, float]]
    peak: int

    def cpu_at(self, moment: float) -> float:
        """Return the processor time spent until then, between two samples by proportion."""
        for (before, spent), (after, more) in zip(self.samples, self.samples[1:], strict=False):
            if after >= moment:
                return spent + (more - spent) * max(0.0, moment - before) / (after - before)
        return self.samples[-1][1]


def _high_water(pid: int) -> int:
    """Return the most memory in kB that a process has held."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


@contextlib.asynccontextmanager
async def world(documents: int, poison: str = "") -> AsyncIterator[World]:
    """Bring up everything in a directory of its own, with documents ready to be inserted."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        directory = Path(name)
        say("starting a local stack")
        async with Stack(directory / "stack") as stack, provider() as double:
            admin = await asyncpg.connect(stack.admin_url)
            try:
                made = World(stack, admin, double, directory)
                await made.prepare(documents, poison)
                yield made
            finally:
                admin.terminate()


def say(text: str) -> None:
    """Tell the person who waits."""
    print(f"{text} …", file=sys.stderr, flush=True)

"""Search against what it cannot do without: a bare exact vector query plus a bare text query, in one run.

`python -m tests.benchmarks.search --chunks 300000 --tenants 30 --queries 100` makes a Postgres of its own, loads a
corpus, and asks as a signed-in member, by turns with the bare queries. The bare queries run as the superuser, so
without row-level security, name one tenant, return ten ids and are planned for their values; the vector one reads
ingest.embeddings alone, and a second form joins public.chunks as search must. Recall is against numpy's brute force
in double precision, and every fused list is compared with the same list made by plain SQL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import numpy as np
from numpy.typing import NDArray

from local import migrations, shape
from local.postgres import SUPERUSER, Cluster
from local.secrets import Secrets
from tests.benchmarks.corpus import MODEL, Corpus, Tenant, key_of
from tests.callers import as_user

MATCHES = 10
DEPTH = 50  # how far search reads each list
RANKED = 5000  # of a common word, search ranks this many matches
NO_WORD = "qqxzzvjjw"  # no chunk has it: the answer is the vector list alone
TOLERANCE = 1e-5  # a distance this near the tenth's is the tenth's: the query, too, is rounded to half precision
BLOCK = 20  # questions that one tenant asks in a row, as people do

SEARCH = "select * from public.search($1, $2, $3)"
BARE_VECTOR = f"""
    select content_sha256 from ingest.embeddings where model_id = {MODEL} and tenant_id = $2
     order by embedding operator(extensions.<=>) $1::real[]::extensions.halfvec limit {MATCHES}"""
BARE_VECTOR_JOINED = f"""
    select c.id from ingest.embeddings e join public.chunks c using (tenant_id, content_sha256)
     where e.model_id = {MODEL} and e.tenant_id = $2
     order by e.embedding operator(extensions.<=>) $1::real[]::extensions.halfvec limit {MATCHES}"""
BARE_TEXT = f"""
    select id from public.chunks where tenant_id = $2 and fts @@ websearch_to_tsquery('english', $1)
     order by ts_rank_cd(fts, websearch_to_tsquery('english', $1)) desc limit {MATCHES}"""
VECTOR_LIST = f"""
    select c.id from ingest.embeddings e join public.chunks c using (tenant_id, content_sha256)
     where e.model_id = {MODEL} and e.tenant_id = $2
     order by e.embedding operator(extensions.<=>) ingest.query_vector($1::real[], 'm', cardinality($1::real[])), c.id
     limit {DEPTH}"""
TEXT_LIST = f"""
    select id from public.chunks where tenant_id = $2 and fts @@ websearch_to_tsquery('english', $1)
     order by ts_rank_cd(fts, websearch_to_tsquery('english', $1)) desc, id limit {DEPTH}"""
TEXT_MATCHES = "select count(*) from public.chunks where tenant_id = $2 and fts @@ websearch_to_tsquery('english', $1)"


@dataclass
class Found:
    """What a run measured: milliseconds by kind of query, and how right the answers were."""

    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    recall: list[float] = field(default_factory=list)
    matched: list[int] = field(default_factory=list)  # chunks of the tenant that each query's words hit
    checked: int = 0  # fused lists compared
    wrong: list[str] = field(default_factory=list)  # queries whose fused list was not brute force's

    def summary(self) -> dict[str, object]:
        """Return p50 and p95 by kind, the ratios and the recall."""
        times = {kind: np.array(values) for kind, values in self.milliseconds.items()}
        bare = times["bare vector"] + times["bare text"]
        joined = times["bare vector, joined to chunks"] + times["bare text"]
        return {
            "p50_ms": {kind: round(float(np.percentile(values, 50)), 2) for kind, values in times.items()},
            "p95_ms": {kind: round(float(np.percentile(values, 95)), 2) for kind, values in times.items()},
            "ratio_of_p50": round(
                float(
                    np.median(times["search"]) / (np.median(times["bare vector"]) + np.median(times["bare text"]))
                ), 3,
            ),
            "ratio_of_p50_to_sums": round(float(np.median(times["search"]) / np.median(bare)), 3),
            "median_of_ratios": round(float(np.median(times["search"] / bare)), 3),
            "ratio_of_p50_to_joined": round(float(np.median(times["search"]) / np.median(joined)), 3),
            "recall_at_10": float(np.mean(self.recall)),
            "words_hit_chunks_p5_p50_p95": [int(n) for n in np.percentile(self.matched, [5, 50, 95])],
            "fused_lists": {"checked": self.checked, "wrong": self.wrong},
        }  # fmt: skip


class Bench:
    """Asks one loaded database; `member` and `bare` are connections of the superuser."""

    def __init__(self, corpus: Corpus, member: asyncpg.Connection, bare: asyncpg.Connection, seed: int = 7) -> None:
        self.corpus = corpus
        self.member = member
        self.bare = bare
        self.random = np.random.default_rng(seed)
        self.found = Found()

    async def ask(self, tenant: Tenant, words: str, vector: NDArray[np.float32]) -> list[asyncpg.Record]:
        """Search as the tenant's own user."""
        async with as_user(self.member, tenant.id):
            rows: list[asyncpg.Record] = await self.member.fetch(SEARCH, words, vector.tolist(), MATCHES)
        return rows

    async def recall(self, tenant: Tenant, vector: NDArray[np.float32]) -> float:
        """Return the share of the ten nearest chunks among the ten that search returns for a word nobody wrote."""
        hits = await self.ask(tenant, NO_WORD, vector)
        nearest = tenant.nearest(vector, MATCHES)
        distances = tenant.distances(vector)
        right = {
            hit["chunk_id"]
            for hit in hits
            if distances[tenant.position[_key(hit)]] <= nearest[-1] + TOLERANCE
        }  # fmt: skip
        return len(right) / len(nearest)

    async def check(self, tenant: Tenant, words: str, vector: NDArray[np.float32]) -> None:
        """Compare search's answer, in order, with reciprocal rank fusion over lists made by plain SQL."""
        matched = await self.bare.fetchval(TEXT_MATCHES, words, tenant.id)
        self.found.matched.append(matched)
        if matched > RANKED:
            return  # of these only some are ranked, and which is the plan's choice
        hits = [
            (hit["chunk_id"], hit["vector_rank"], hit["text_rank"]) for hit in await self.ask(tenant, words, vector)
        ]
        by_vector = _ranks(await self.bare.fetch(VECTOR_LIST, vector.tolist(), tenant.id))
        by_text = _ranks(await self.bare.fetch(TEXT_LIST, words, tenant.id))
        never = 10**6

        def order(chunk: int) -> tuple[float, int, int]:
            ranks = by_vector.get(chunk), by_text.get(chunk)
            score = sum(1 / (60 + rank) for rank in ranks if rank)
            return -round(score, 12), ranks[0] or never, ranks[1] or never

        expected = sorted(by_vector.keys() | by_text.keys(), key=order)[:MATCHES]
        self.found.checked += 1
        if hits != [(chunk, by_vector.get(chunk), by_text.get(chunk)) for chunk in expected]:
            self.found.wrong.append(words)

    async def measure(self, tenant: Tenant, words: str, vector: NDArray[np.float32], turn: int) -> None:
        """Time each kind of query once; who goes first, and so warms the cache, goes round."""
        numbers = vector.tolist()

        async def searched() -> object:
            return await self.member.fetch(SEARCH, words, numbers, MATCHES)

        kinds: dict[str, Callable[[], Awaitable[object]]] = {
            "search": searched,
            "bare vector": lambda: self.bare.fetch(BARE_VECTOR, numbers, tenant.id),
            "bare text": lambda: self.bare.fetch(BARE_TEXT, words, tenant.id),
            "bare vector, joined to chunks": lambda: self.bare.fetch(BARE_VECTOR_JOINED, numbers, tenant.id),
        }
        names = list(kinds)
        async with as_user(self.member, tenant.id):
            for name in names[turn % 4 :] + names[: turn % 4]:
                start = time.perf_counter()
                await kinds[name]()
                self.found.milliseconds.setdefault(name, []).append((time.perf_counter() - start) * 1000)

    async def run(self, queries: int) -> Found:
        """Ask `queries` questions, half of them with a vector near nothing, and check every answer."""
        await self.bare.execute("set plan_cache_mode = force_custom_plan")
        for number in range(queries):
            tenant = self.corpus.tenants[number // BLOCK % len(self.corpus.tenants)]
            words = self.corpus.query(self.random)
            vector = self.corpus.query_vector(tenant, number % 2 == 1, self.random)
            if number % BLOCK == 0:
                _say(f"question {number} of {queries}")
                for _ in range(3):
                    await self.measure(tenant, self.corpus.query(self.random), vector, 0)
                    for times in self.found.milliseconds.values():
                        times.pop()
            await self.measure(tenant, words, vector, number)
            self.found.recall.append(await self.recall(tenant, vector))
            await self.check(tenant, words, vector)
        return self.found


def _key(hit: asyncpg.Record) -> bytes:
    # The corpus puts the heading into the context of every chunk but the boilerplate.
    boilerplate = hit["content"].startswith("Boilerplate of ")
    return key_of("" if boilerplate else hit["heading_path"][0], hit["content"])


def _ranks(rows: list[asyncpg.Record]) -> dict[int, int]:
    return {row["id"]: rank for rank, row in enumerate(rows, 1)}


async def stranger(corpus: Corpus, member: asyncpg.Connection, repeats: int = 50) -> tuple[int, float]:
    """Return how many hits somebody without any document gets, and the median milliseconds of the answer."""
    nobody = Corpus(10, 1, seed=99).tenants[0].id
    random = np.random.default_rng(3)
    times, hits = [], 0
    async with as_user(member, nobody):
        for _ in range(repeats):
            vector = corpus.query_vector(corpus.tenants[0], False, random).tolist()
            start = time.perf_counter()
            hits += len(await member.fetch(SEARCH, str(corpus.words[30]), vector, MATCHES))
            times.append((time.perf_counter() - start) * 1000)
    return hits, float(np.median(times))


async def temporary_files(connection: asyncpg.Connection) -> int:
    """Return how many temporary files the server has written since its statistics were reset."""
    await connection.execute("select pg_stat_force_next_flush()")
    written: int = await connection.fetchval(
        "select temp_files from pg_stat_database where datname = current_database()"
    )
    return written


async def benchmark(directory: Path, chunks: int, tenants: int, queries: int) -> dict[str, object]:
    """Make a cluster in `directory`, load, measure, stop it, and return the summary."""
    secrets = Secrets.generate()
    cluster = Cluster(directory / "postgres", secrets.passwords[SUPERUSER], durable=False)
    corpus = Corpus(chunks, tenants)
    connections: list[asyncpg.Connection] = []
    try:
        _say("making a database")
        cluster.create()
        cluster.start()
        admin = await asyncpg.connect(cluster.admin_url())
        connections.append(admin)
        await shape.make_roles(admin, secrets.passwords)
        await shape.make_schemas(admin)
        await migrations.push(cluster.admin_url(), cluster.url("postgres", secrets.passwords["postgres"]))
        await corpus.load(admin, _say)
        member, bare = await asyncpg.connect(cluster.admin_url()), await asyncpg.connect(cluster.admin_url())
        connections += [member, bare]
        return await report(corpus, member, bare, queries)
    finally:
        for connection in connections:
            connection.terminate()
        cluster.stop()


async def report(
    corpus: Corpus, member: asyncpg.Connection, bare: asyncpg.Connection, queries: int
) -> dict[str, object]:
    """Run every measurement on a loaded database."""
    found = await Bench(corpus, member, bare).run(queries)
    written = await temporary_files(member)
    for number in range(5):
        tenant = corpus.tenants[number % len(corpus.tenants)]
        async with as_user(member, tenant.id):
            vector = corpus.query_vector(tenant, False, np.random.default_rng(number))
            await member.fetch(SEARCH, str(corpus.words[25]), vector.tolist(), 100)
    hits, milliseconds = await stranger(corpus, member)
    return {
        "chunks": corpus.a_tenant * len(corpus.tenants),
        "tenants": len(corpus.tenants),
        "queries": queries,
        **found.summary(),
        "temporary_files": await temporary_files(member) - written,
        "stranger": {"hits": hits, "p50_ms": round(milliseconds, 2)},
        "work_mem": await bare.fetchval("show work_mem"),
        "shared_buffers": await bare.fetchval("show shared_buffers"),
    }


def _say(text: str) -> None:
    print(f"\r\x1b[K{text} …" if sys.stderr.isatty() else text, end="", file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        print(file=sys.stderr)


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.search", description=__doc__.split("\n\n")[0])
    parser.add_argument("--chunks", type=int, default=300_000, help="of all tenants together (default: 300000)")
    parser.add_argument("--tenants", type=int, default=30, help="each with as many chunks (default: 30)")
    parser.add_argument("--queries", type=int, default=100, help="questions asked (default: 100)")
    parser.add_argument("--directory", type=Path, help="where to put the database, about 5 kB a chunk (default: temp)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sluice-search-", dir=arguments.directory) as directory:
        result = asyncio.run(
            benchmark(Path(directory), arguments.chunks, arguments.tenants, arguments.queries)
        )  # fmt: skip
    _say("done")
    if arguments.json:
        print(json.dumps(result))
        return
    p50, p95 = result.pop("p50_ms"), result.pop("p95_ms")
    assert isinstance(p50, dict)
    assert isinstance(p95, dict)
    print(f"\n{'':32}{'p50 ms':>9}{'p95 ms':>9}")
    for kind in p50:
        print(f"{kind:32}{p50[kind]:9.2f}{p95[kind]:9.2f}")
    for name, value in result.items():
        print(f"{name:32}{value}")


if __name__ == "__main__":
    main()

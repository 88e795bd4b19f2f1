"""Search finds exactly what brute force finds, whoever asks and whatever lies between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import numpy as np
import pytest

from local import shape
from local.postgres import Cluster
from tests.benchmarks.corpus import MODEL, Corpus, Tenant
from tests.benchmarks.search import MATCHES, NO_WORD, SEARCH, Bench, stranger, temporary_files
from tests.callers import as_user
from tests.conftest import TEMPLATE

DATABASE = "test_search_recall"


@pytest.fixture(scope="module")
async def bench(template: asyncpg.Connection, cluster: Cluster) -> AsyncIterator[Bench]:
    """A corpus of 2,000 chunks in 5 tenants, loaded once: a test that changes it tells the corpus, too."""
    await template.execute(f"create database {DATABASE} template {TEMPLATE} strategy file_copy")
    await shape.open_database(template, DATABASE)
    member = await asyncpg.connect(cluster.admin_url(DATABASE))
    bare = await asyncpg.connect(cluster.admin_url(DATABASE))
    corpus = Corpus(2000, 5)
    await corpus.load(bare)
    yield Bench(corpus, member, bare)
    await member.close()
    await bare.close()
    await template.execute(f"drop database {DATABASE} with (force)")


@pytest.mark.parametrize("off_topic", [False, True])
async def test_the_ten_nearest_chunks_are_found_on_and_off_topic(bench: Bench, off_topic: bool) -> None:
    for tenant in bench.corpus.tenants:
        for _ in range(4):
            vector = bench.corpus.query_vector(tenant, off_topic, bench.random)
            assert await bench.recall(tenant, vector) == 1.0


async def test_the_fused_list_is_that_of_plain_sql(bench: Bench) -> None:
    found = await bench.run(40)
    assert found.checked == 40
    assert max(found.matched) > MATCHES
    assert found.wrong == []


async def test_vectors_that_lost_their_chunks_hide_none_behind_them(bench: Bench) -> None:
    tenant = bench.corpus.tenants[4]
    vector = bench.corpus.query_vector(tenant, False, bench.random)
    # All but three of the 250 nearest, more than search reads at first; the boilerplate stays for its many chunks.
    nearest = np.argsort(tenant.distances(vector))[:250]
    gone = [int(n) for n in nearest[3:] if tenant.multiplicity[n] == 1]
    await bench.bare.execute(
        "delete from public.chunks where tenant_id = $1 and content_sha256 = any ($2)",
        tenant.id, [tenant.keys[n] for n in gone],
    )  # fmt: skip
    for number in gone:
        tenant.multiplicity[number] = 0
    assert await bench.recall(tenant, vector) == 1.0


@pytest.mark.parametrize("empty_documents", [0, 25])
async def test_a_filter_finds_the_nearest_of_the_documents_it_leaves(bench: Bench, empty_documents: int) -> None:
    # Of few documents search reads the chunks, of many (these empty ones help) the vectors first.
    tenant = bench.corpus.tenants[2]
    await bench.bare.executemany(
        "insert into public.documents (id, tenant_id, bucket_id, name, language)"
        " values (gen_random_uuid(), $1, 'documents', $2, 'english')",
        [(tenant.id, f"{tenant.id}/empty-{number}.pdf") for number in range(empty_documents)],
    )
    vector = tenant.vectors[0][0].astype(np.float32).tolist()  # of the document that is filtered out
    excluded = await bench.bare.fetchval(
        "select document_id from public.chunks where tenant_id = $1 and content_sha256 = $2", tenant.id, tenant.keys[0]
    )
    documents = [
        row["id"]
        for row in await bench.bare.fetch(
            "select id from public.documents where tenant_id = $1 and id <> $2", tenant.id, excluded
        )
    ]
    nearest = await bench.bare.fetch(
        "select c.id from ingest.embeddings e join public.chunks c using (tenant_id, content_sha256)"
        " where e.tenant_id = $1 and c.document_id = any ($2)"
        " order by e.embedding operator(extensions.<=>) ingest.query_vector($3::real[], 'm', 384), c.id limit 30",
        tenant.id, documents, vector,
    )  # fmt: skip
    filters = json.dumps({"document_ids": [str(document) for document in documents]})
    async with as_user(bench.member, tenant.id):
        hits = await bench.member.fetch("select * from public.search($1, $2, 30, $3)", NO_WORD, vector, filters)
    assert [hit["chunk_id"] for hit in hits] == [row["id"] for row in nearest]


async def test_a_member_of_two_tenants_finds_the_nearest_of_both(bench: Bench) -> None:
    first, second = bench.corpus.tenants[:2]
    member = UUID(int=7)
    await bench.bare.execute("insert into auth.users (id, email) values ($1, 'both@example.org')", member)
    # Only organisations have members, so these become two.
    await bench.bare.execute(
        "update public.tenants set kind = 'organisation' where id = any ($1)", [first.id, second.id]
    )
    await bench.bare.executemany(
        "insert into public.tenant_members (tenant_id, user_id) values ($1, $2)",
        [(first.id, member), (second.id, member)],
    )
    both = Tenant(member)
    for tenant in (first, second):
        for number, key in enumerate(tenant.keys):
            both.position[key] = len(both.keys)
            both.keys.append(key)
            both.multiplicity.append(tenant.multiplicity[number])
        both.vectors += tenant.vectors
    for tenant in (first, second):
        vector = (tenant.vectors[0][0] + first.vectors[2][0]).astype(np.float32)
        assert await bench.recall(both, vector) == 1.0


async def test_an_approximate_index_that_somebody_made_is_not_used(bench: Bench) -> None:
    # It wants a column with dimensions. Off topic it finds few of a tenant's vectors, or none.
    await bench.bare.execute("alter table ingest.embeddings alter embedding type extensions.halfvec(384)")
    await bench.bare.execute(
        f"create index approximate on ingest.embeddings_{MODEL} using hnsw (embedding extensions.halfvec_cosine_ops)"
    )
    await bench.bare.execute("analyze ingest.embeddings")
    # So few vectors are cheaper to sort; with this the planner takes the index wherever it can.
    await bench.member.execute("set enable_sort = off")
    try:
        for tenant in bench.corpus.tenants[:3]:
            assert await bench.recall(tenant, bench.corpus.query_vector(tenant, True, bench.random)) == 1.0
    finally:
        await bench.member.execute("reset enable_sort")
        await bench.bare.execute("drop index ingest.approximate")


async def test_the_policies_are_conditions_of_the_index(bench: Bench) -> None:
    tenant = bench.corpus.tenants[0]
    async with as_user(bench.member, tenant.id):
        await bench.member.execute("set local enable_seqscan = off")  # of 2,000 rows the planner reads all
        for table in ("ingest.embeddings", "public.chunks"):
            plan = "\n".join(
                row[0]
                for row in await bench.member.fetch(
                    f"explain (analyze, costs off, timing off) select tenant_id from {table}"
                )
            )
            assert "Index Cond: (tenant_id = ANY ((InitPlan 1).col1))" in plan, plan
            assert "Rows Removed by Filter" not in plan, plan


async def test_a_stranger_finds_nothing_and_search_writes_no_temporary_file(bench: Bench) -> None:
    written = await temporary_files(bench.member)
    hits, _ = await stranger(bench.corpus, bench.member, repeats=3)
    assert hits == 0
    tenant = bench.corpus.tenants[3]
    async with as_user(bench.member, tenant.id):
        vector = bench.corpus.query_vector(tenant, False, bench.random).tolist()
        for words in (NO_WORD, str(bench.corpus.words[25])):
            assert await bench.member.fetch(SEARCH, words, vector, 100)
    assert await temporary_files(bench.member) == written

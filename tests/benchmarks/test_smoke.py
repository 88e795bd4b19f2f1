"""The benchmark of W1, small: that its numbers are those of the work that was done."""

from __future__ import annotations

import pytest

from tests.benchmarks.w1 import Workload, measure
from tests.benchmarks.world import world


@pytest.mark.timeout(240)
async def test_what_w1_counts_are_the_chunks_the_vectors_and_the_texts_that_were_asked_for() -> None:
    async with world(6) as made:
        workload = Workload(documents=6, rounds=1, concurrency=2, slots=4)
        await made.fill(bare=False)
        await made.double.reset()
        run = await made.work(made.settings(workload.concurrency, workload.slots))
        stored = await made.admin.fetchval("select count(*) from ingest.embeddings")
        assert run.chunks == stored == run.counts["texts"] > 6
        assert run.left == {"ready": 6}
        assert 0 < run.counts["requests"] == run.counts["answered"] <= run.chunks
        assert run.total > run.steady > 0
        assert run.cpu_total > run.cpu > 0
        # The double counts by length; what the ledger has of its bills must be the same.
        assert await made.admin.fetchval("select sum(tokens) from ingest.usage") == run.counts["tokens"]

        report = (await measure(made, workload)).report()
        assert report["chunks"] == run.chunks
        assert report["not_ready"] == 0
        assert report["ratio"] == pytest.approx(
            report["chunks_per_second"] / report["reference_chunks_per_second"], rel=0.02
        )
        assert report["reference_requests"] == 1  # six rows are one claim
        assert 20 < report["peak_rss_mb"] < 1000

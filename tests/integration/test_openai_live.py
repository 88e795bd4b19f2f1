"""The real service, with OPENAI_API_KEY and a fraction of a cent: `scripts/test tests/integration -m live`."""

from __future__ import annotations

import os

import numpy as np
import pytest

from worker.model import EmbeddingModel
from worker.pipeline.embed.embedder import Batching
from worker.pipeline.embed.openai import OpenAIEmbedder

pytestmark = pytest.mark.live


async def test_the_service_counts_tokens_as_we_do_and_gives_what_is_registered() -> None:
    model = EmbeddingModel("openai", "text-embedding-3-small", 1536, 8191)
    openai = OpenAIEmbedder(model, Batching(256, 100_000, 1, 0), key=os.environ["OPENAI_API_KEY"])
    texts = ["The crane of berth 7 lifts 21 tonnes.", "お誕生日おめでとう", "<|endoftext|>"]
    bills: list[int] = []

    vectors = await openai.embed(texts, billed=bills.append)
    await openai.aclose()

    assert bills == [sum(openai.count_tokens(texts))]
    assert vectors.shape == (3, 1536)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)

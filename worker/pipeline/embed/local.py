"""The embedder that needs no key and no network: MiniLM in onnxruntime, on the worker's own cores."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Before the import, which else writes an identifier of this machine into the home directory and sends word of itself:
# the call that turns its telemetry off comes too late for that.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from worker.errors import Rejected
from worker.pipeline.embed import minilm
from worker.pipeline.embed.embedder import Batching, unbilled

COUNT_CHARS = 1_000_000
"""Code points tokenised at once while counting: the tokenizer keeps about 150 bytes a token until it returns."""


class LocalEmbedder:
    """Embeds with all-MiniLM-L6-v2: 384 dimensions, 256 tokens a text, every text alone on one thread.

    Alone, because quantisation scales are taken over a whole input: the same text gives the same bytes
    whatever is embedded beside it. `threads` texts run at a time, over all callers (0: one a core).
    """

    model = minilm.MODEL
    # Under a second of work on two cores, so that progress shows; larger gains nothing. Two at once leave no core
    # idle between them.
    batching = Batching(texts=64, tokens=64 * 256, at_once=2, linger=0)

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        """Load and verify the build below `directory`; Misconfigured says how to make one."""
        files = minilm.load(directory)
        self._tokenizer: Tokenizer = Tokenizer.from_str(files.tokenizer)
        # "[SEP]" in a document is text of that document, not an order to the model.
        self._tokenizer.encode_special_tokens = True
        options = onnxruntime.SessionOptions()
        # One thread a run: two runs at once are faster than two threads in one, and sums have one order.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(files.graph, options, providers=["CPUExecutionProvider"])
        self._threads = ThreadPoolExecutor(threads or _cores(), thread_name_prefix="embed")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        counts: list[int] = []
        start = size = 0
        for end, text in enumerate(texts, 1):
            size += len(text)
            if size >= COUNT_CHARS or end == len(texts):
                counts += map(len, self._tokenizer.encode_batch_fast(list(texts[start:end])))
                start, size = end, 0
        return counts

    async def embed(self, texts: Sequence[str], *, billed: Callable[[int], None] = unbilled) -> NDArray[np.float32]:
        loop = asyncio.get_running_loop()
        rows = await asyncio.gather(*(loop.run_in_executor(self._threads, self._embed, text) for text in texts))
        return np.stack(rows) if rows else np.empty((0, self.model.dimensions), np.float32)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    def _embed(self, text: str) -> NDArray[np.float32]:
        ids = self._tokenizer.encode(text).ids
        if len(ids) > self.model.max_tokens:
            raise Rejected(
                "embedding_input_too_long",
                f"A text has {len(ids)} tokens, and the embedding model takes {self.model.max_tokens}. Shorten it.",
            )
        (vectors,) = self._session.run(["embedding"], {"input_ids": np.array([ids], np.int64)})
        vector: NDArray[np.float32] = vectors[0]
        return vector


def _cores() -> int:
    """Cores this process may run on; a container's CPU quota does not show here, which is what `threads` is for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

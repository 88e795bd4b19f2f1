"""What a provider of embeddings answers: a text's vector is its hash, so every answer can be foretold."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.provider_double import ProviderDouble, Reply, Request
from worker.model import EmbeddingModel
from worker.pipeline.embed.embedder import Batching
from worker.pipeline.embed.openai import OpenAIEmbedder

MODEL = EmbeddingModel("openai", "text-embedding-3-small", dimensions=64, max_tokens=8191)
PATH = "/v1/embeddings"
KEY = "sk-test-hush-0123456789"
FEW = Batching(texts=256, tokens=100_000, at_once=8, linger=0.005)


def embedder(double: ProviderDouble, batching: Batching = FEW, **options: Any) -> OpenAIEmbedder:
    """Return the adapter with the real SDK, pointed at the double."""
    options.setdefault("seconds", 5)
    return OpenAIEmbedder(MODEL, batching, key=KEY, base_url=f"{double.url}/v1", **options)


def vector_of(text: str) -> NDArray[np.float32]:
    """Return the unit vector of a text."""
    digest = hashlib.sha512(text.encode()).digest()
    vector = np.frombuffer(digest, np.uint8).astype(np.float32) - 127.5
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def texts_of(requests: Iterable[Request]) -> list[str]:
    """Return all texts that these requests asked for, in order."""
    return [text for request in requests for text in request.json["input"]]


def encoded(vector: NDArray[np.float32]) -> str:
    """Return a vector as base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def body(rows: Iterable[Any], tokens: int = 10) -> dict[str, Any]:
    """Return an answer with these embeddings, indexed in order."""
    data = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(rows)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": MODEL.name, "usage": usage}


def answer(request: Request) -> Reply:
    """Answer as the provider does, in the encoding that is asked for; a text costs a token a word."""
    texts = request.json["input"]
    rows = [vector_of(text) for text in texts]
    as_float = request.json.get("encoding_format") != "base64"
    return Reply(body=body(
        [row.tolist() if as_float else encoded(row) for row in rows], tokens=sum(len(text.split()) for text in texts)
    ))  # fmt: skip


def error(message: str = "What the text said.", *, code: str | None = None, kind: str | None = None,
          param: str | None = None) -> dict[str, Any]:  # fmt: skip
    """Return an error's body; its message quotes what must not be repeated."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}

"""OpenAI's embeddings protocol, the server's side: what may be asked, and the answer."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass
from http import HTTPStatus

import numpy as np

from worker.model import EmbeddingModel
from worker.pipeline.embed.embedder import Embedder

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_TEXTS = 256
_FIELDS = {"model", "input", "encoding_format", "dimensions", "user"}


class Problem(Exception):
    """A request that is refused, with a sentence for whoever sent it."""

    def __init__(self, status: HTTPStatus, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self._message = message
        self._parameter = parameter

    def body(self) -> dict[str, object]:
        """Return the refusal as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self._message, "type": kind, "param": self._parameter, "code": None}}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was understood; `texts` are not empty."""

    texts: list[str]
    base64: bool


def read_asked(body: bytes, model: EmbeddingModel) -> Asked:
    """Read a request's body; raises Problem for what this model does not do."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise _wrong("The body is not JSON.") from None
    if not isinstance(asked, dict):
        raise _wrong("The body must be a JSON object.")
    if unknown := asked.keys() - _FIELDS:
        raise _wrong("The request has a field that is not known here.", min(unknown)[:64])
    if asked.get("model") != model.name:
        raise Problem(HTTPStatus.NOT_FOUND, f"There is no such model here. Ask for {model.name}.", "model")
    # Also True == 1 in Python; a bool is no number of dimensions.
    dimensions = asked.get("dimensions", model.dimensions)
    if type(dimensions) is not int or dimensions != model.dimensions:
        raise _wrong(f"{model.name} gives {model.dimensions} dimensions and no others.", "dimensions")
    encoding = asked.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise _wrong("encoding_format is float or base64.", "encoding_format")
    given = asked.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise _wrong("input is a text or an array of texts, none of them empty.", "input")
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise _wrong(f"input may have from 1 to {MAX_TEXTS} texts.", "input")
    # JSON can spell half a surrogate pair, which is no text.
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise _wrong("input holds what is not text.", "input")
    return Asked(texts, encoding == "base64")


async def answer_to(asked: Asked, embedder: Embedder) -> dict[str, object]:
    """Embed and return the answer; raises Rejected for a text over the model's limit, nothing is cut."""
    tokens = sum(await asyncio.to_thread(embedder.count_tokens, asked.texts))
    vectors = await embedder.embed(asked.texts)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if asked.base64 else _numbers(row),
        }
        for index, row in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": embedder.model.name, "data": data, "usage": usage}


def _numbers(row: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[float]:
    numbers: list[float] = row.tolist()
    return numbers


def _wrong(message: str, parameter: str | None = None) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, message, parameter)

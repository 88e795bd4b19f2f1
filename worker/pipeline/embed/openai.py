"""The embedder that speaks to OpenAI, and to every server that speaks its protocol.

Vectors travel as base64 and become numpy rows without a Python float in between: three times faster and
a fifth of the processor time. The SDK's own retries are off: pauses belong to the queue, which charges
nobody for them. What the provider says of a text is never repeated, because it may quote it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, OpenAIError

from worker.errors import IngestError, Misconfigured, Rejected, Throttled, Transient, Unavailable
from worker.model import EmbeddingModel
from worker.pipeline.embed.cl100k import Cl100k
from worker.pipeline.embed.embedder import Batching, check_vectors, invalid_answer, unbilled
from worker.pipeline.probe import ask

PROVIDER = "openai"
BASE_URL = "https://api.openai.com/v1"
MAX_TEXTS = 2048
MAX_TOKENS = 300_000
"""What OpenAI takes in one request."""

_RETRY_SECONDS = 5.0
_PROBE = "harbour"
"""A text that every model takes."""
_UNIT = 1e-3
_TOKEN_BYTES = 4
"""A code point is at most four bytes, and a token at least one."""


class OpenAIEmbedder:
    """Embeds over HTTP; one call is one request, and `batching` says what one should carry.

    `send_dimensions` asks for vectors of `model.dimensions`, which only models that can shorten theirs accept.
    """

    def __init__(
        self, model: EmbeddingModel, batching: Batching, *,
        key: str, base_url: str = BASE_URL, send_dimensions: bool = True,
        encoding: Literal["base64", "float"] = "base64", seconds: float = 60,
    ) -> None:  # fmt: skip
        self.model = model
        self.batching = batching
        self._counter = Cl100k()
        self._key, self._base_url = key, base_url.rstrip("/")
        self._client = AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=seconds)
        self._options: dict[str, object] = {"model": model.name, "encoding_format": encoding}
        if send_dimensions:
            self._options["dimensions"] = model.dimensions
        self._seconds = seconds
        self._works = False

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._counter.count(texts)

    async def embed(self, texts: Sequence[str], *, billed: Callable[[int], None] = unbilled) -> NDArray[np.float32]:
        if not texts:
            return np.empty((0, self.model.dimensions), np.float32)
        await self._check_lengths(texts)
        try:
            content = await self._post(texts)
        except Rejected:
            # With a request that is wrong in itself every document would be given up, one after the other.
            if len(texts) == 1 and not self._works:
                await self._probe()
            raise
        self._works = True
        vectors = _read(content, len(texts), self.model, billed)
        lengths = check_vectors(vectors, count=len(texts), model=self.model)
        # Row by row: a vector must not depend on its neighbours.
        far = np.abs(lengths - 1) > _UNIT
        if far.any():
            vectors = vectors.copy()
            vectors[far] = vectors[far] / lengths[far, None]
        return vectors

    async def models(self) -> list[str] | None:
        """Return the models that the key may use, which costs nothing; None where the server lists none.

        Raises what a request raises: Misconfigured for a refused key, Unavailable without an answer.
        """
        try:
            async with asyncio.timeout(self._seconds):
                content = await self._client.get("/models", cast_to=bytes)
            return [str(item["id"]) for item in json.loads(content)["data"]]
        except APIStatusError as exc:
            if exc.status_code in (404, 405):
                return None
            raise _refused(exc, self.model) from exc
        except (APIConnectionError, TimeoutError) as exc:
            raise _unavailable(type(exc).__name__) from exc
        except (OpenAIError, ValueError, KeyError, TypeError) as exc:
            raise invalid_answer(self.model, type(exc).__name__) from exc

    async def probe(self, http: httpx.AsyncClient) -> None:
        """Ask for the model's description, which costs nothing; raises the errors of errors.py.

        Servers that speak the protocol need not know that request; of those it is enough that they answer. And a key
        that may embed need not be allowed to read descriptions: that refusal comes after the key was looked up.
        """

        def enough(answer: httpx.Response) -> bool:
            if answer.status_code in (404, 405):
                return self._base_url != BASE_URL
            return answer.status_code in (401, 403) and "missing scopes" in answer.text.lower()

        try:
            await ask(
                http, f"{self._base_url}/models/{quote(self.model.name, safe='')}",
                {"authorization": f"Bearer {self._key}"},
                service="The embedding service", settings="OPENAI_API_KEY and OPENAI_BASE_URL", enough=enough,
            )  # fmt: skip
        except Misconfigured as exc:
            if exc.code == "not_found":
                raise _no_such_model(self.model, exc.detail or "") from exc
            raise

    async def aclose(self) -> None:
        await self._client.close()

    async def _check_lengths(self, texts: Sequence[str]) -> None:
        """Most texts are too short to be worth counting a second time."""
        long = [text for text in texts if len(text) * _TOKEN_BYTES > self.model.max_tokens]
        if not long:
            return
        most = max(await asyncio.to_thread(self.count_tokens, long))
        if most > self.model.max_tokens:
            raise Rejected(
                "embedding_input_too_long",
                f"A text has {most} tokens, and the embedding model takes {self.model.max_tokens}. Shorten it.",
            )

    async def _post(self, texts: Sequence[str]) -> bytes:
        try:
            # The SDK's time limit is for a silence; a server that trickles would never meet it.
            async with asyncio.timeout(self._seconds):
                # Not `embeddings.create`: it walks through the texts one by one, a quarter of what a request costs.
                return await self._client.post(
                    "/embeddings", cast_to=bytes, body=self._options | {"input": list(texts)}
                )
        except APIStatusError as exc:
            raise _refused(exc, self.model) from exc
        except (APIConnectionError, TimeoutError) as exc:
            raise _unavailable(type(exc).__name__) from exc
        except OpenAIError as exc:
            raise invalid_answer(self.model, type(exc).__name__) from exc

    async def _probe(self) -> None:
        """Raise Misconfigured when the provider refuses what it cannot have anything against."""
        try:
            await self._post([_PROBE])
        except Rejected as exc:
            raise Misconfigured(
                "embedding_request",
                "The embedding service refuses every request. An operator must check the embedding model's name, its "
                "dimensions and its encoding; the document then continues by itself.",
                detail=exc.detail,
            ) from exc
        self._works = True


def _read(content: bytes, count: int, model: EmbeddingModel, billed: Callable[[int], None]) -> NDArray[np.float32]:
    """Return the answer's rows in the order of their `index`; they are not checked yet."""
    try:
        answer = json.loads(content)
        rows: list[bytes | None] = [None] * count
        tokens = (answer.get("usage") or {}).get("prompt_tokens")
        if type(tokens) is int and tokens >= 0:
            billed(tokens)
        for item in answer["data"]:
            index, row = item["index"], item["embedding"]
            if type(index) is not int or not 0 <= index < count or rows[index] is not None:
                raise invalid_answer(model, "an index is out of range or stands twice")
            rows[index] = b64decode(row) if isinstance(row, str) else np.asarray(row, "<f4").tobytes()
        present = [row for row in rows if row is not None]
        if len(present) != count:
            raise invalid_answer(model, f"{len(present)} vectors for {count} texts")
        if len({len(row) for row in present}) != 1:
            raise invalid_answer(model, "vectors of different sizes")
        return np.frombuffer(b"".join(present), "<f4").reshape(count, -1)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as exc:
        raise invalid_answer(model, f"{type(exc).__name__} while it was read") from exc


def _refused(exc: APIStatusError, model: EmbeddingModel) -> IngestError:
    """Translate an answer that is not 200."""
    code, kind, param = (_word(word) for word in (exc.code, exc.type, exc.param))
    detail = f"HTTP {exc.status_code} {code or kind}".rstrip() + (f", {param}" if param else "")
    match exc.status_code:
        case 401 | 403:
            return Misconfigured(
                "embedding_key",
                "The embedding service refused our key. An operator must check OPENAI_API_KEY and what it may do; "
                "the document then continues by itself.",
                detail=detail,
            )
        case 402 | 429 if exc.status_code == 402 or "insufficient_quota" in (code, kind):
            return Misconfigured(
                "embedding_quota",
                "The account with the embedding service is used up. An operator must raise its limit or pay its bill; "
                "the document then continues by itself.",
                detail=detail,
            )
        case 429:
            return Throttled(
                "provider_rate_limited",
                "The embedding service asked us to wait. The file continues by itself; nothing needs to be done.",
                retry_after=_retry_after(exc),
                detail=detail,
            )
        case 404 | 405:
            return _no_such_model(model, detail)
        case 400 | 413 | 422:
            if code == "model_not_found" or param == "model":
                return _no_such_model(model, detail)
            return Rejected(
                "embedding_refused",
                "The embedding service refuses a part of this file's text. Change it and upload the file again.",
                detail=detail,
            )
        case 408 | 502 | 503 | 504 | 529:
            return _unavailable(detail)
    return Transient(
        "embedding_failed",
        "The embedding service failed. It is tried again by itself; nothing needs to be done.",
        detail=detail,
    )


def _no_such_model(model: EmbeddingModel, detail: str) -> Misconfigured:
    return Misconfigured(
        "embedding_model_unknown",
        f"The embedding service does not know the model {model.name}. An operator must check SLUICE_EMBED_MODEL, "
        "OPENAI_BASE_URL and what the key may use; the document then continues by itself.",
        detail=detail,
    )


def _unavailable(detail: str) -> Unavailable:
    return Unavailable(
        "embedding_unavailable",
        "The embedding service does not answer. The file continues by itself; nothing needs to be done.",
        detail=detail,
    )


def _word(found: object) -> str:
    """Let through what is a code; a sentence may quote the document."""
    return found if isinstance(found, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", found) else ""


def _retry_after(exc: APIStatusError) -> float:
    """Return the seconds that the provider asks for; they may be anything, and are bounded where they are used."""
    headers = exc.response.headers
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        said = headers.get(name)
        if said is None:
            continue
        try:
            return max(0.0, float(said) / unit)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
        except (ValueError, OverflowError):
            pass
    return _RETRY_SECONDS

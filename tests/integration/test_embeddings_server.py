"""`sluice embeddings-server`, asked by OpenAI's client: the worker's own vectors, and nothing odd is taken."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil  # type: ignore[import-untyped]
import pytest

from local.embeddings_process import embedding
from worker.operate.embeddings_server import listening
from worker.pipeline.embed.local import LocalEmbedder

TEXTS = ["The quay lies to the east.", "漢字 🙂", "x"]
MODEL = LocalEmbedder.model.name
KEY = "embed-key-of-the-test"


@pytest.fixture
async def url(embedder: LocalEmbedder) -> AsyncIterator[str]:
    async with listening(embedder) as port:
        yield f"http://127.0.0.1:{port}/v1"


async def post(url: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with httpx.AsyncClient(timeout=60) as client:
        return await client.post(f"{url}/embeddings", content=content, headers=headers)


async def test_the_openai_client_gets_the_workers_vectors_in_either_encoding(url: str, embedder: LocalEmbedder) -> None:
    wanted = await embedder.embed(TEXTS)
    async with openai.AsyncOpenAI(api_key="none", base_url=url) as client:
        plain = await client.embeddings.create(model=MODEL, input=TEXTS)  # the SDK asks for base64 by itself
        floats = await client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="float", dimensions=384)
    assert [row.index for row in plain.data] == [0, 1, 2]
    np.testing.assert_array_equal(np.array([row.embedding for row in plain.data], np.float32), wanted)
    np.testing.assert_array_equal(np.array(floats.data[0].embedding, np.float32), wanted[0])
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == sum(embedder.count_tokens(TEXTS))
    raw = (await post(url, {"model": MODEL, "input": TEXTS, "encoding_format": "base64"})).json()
    assert base64.b64decode(raw["data"][2]["embedding"]) == wanted[2].tobytes()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b"{"),
        (400, b"\xff"),
        (400, b"[" * 100_000),
        (400, []),
        (404, {"model": "text-embedding-3-small", "input": "a"}),
        (404, {"input": "a"}),
        (400, {"model": MODEL}),
        (400, {"model": MODEL, "input": ""}),
        (400, {"model": MODEL, "input": []}),
        (400, {"model": MODEL, "input": ["a", ""]}),
        (400, {"model": MODEL, "input": [[1, 2]]}),
        (400, {"model": MODEL, "input": ["a"] * 257}),
        (400, {"model": MODEL, "input": "\ud800"}),
        (400, {"model": MODEL, "input": "a", "dimensions": 512}),
        (400, {"model": MODEL, "input": "a", "dimensions": True}),
        (400, {"model": MODEL, "input": "a", "encoding_format": "int8"}),
        (400, {"model": MODEL, "input": "a", "url": "http://example.com"}),
        (400, {"model": MODEL, "input": "word " * 300}),
        (413, {"model": MODEL, "input": "a" * (5 * 1024 * 1024)}),
    ],
    ids=lambda given: str(given)[:40],
)
async def test_what_the_model_does_not_do_is_refused_in_openais_shape(url: str, status: int, body: Any) -> None:
    answer = await post(url, body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"].endswith(".")
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_other_paths_and_methods_are_refused_and_the_connection_goes_on(url: str) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        assert (await client.get(f"{url}/embeddings")).status_code == 405
        assert (await client.post(f"{url}/chat/completions", json={})).status_code == 404
        answer = await client.post(f"{url}/embeddings", json={"model": MODEL, "input": "a"})
    assert answer.status_code == 200


async def test_with_a_key_only_its_holder_is_served(embedder: LocalEmbedder) -> None:
    async with listening(embedder, key=KEY) as port:
        url, body = f"http://127.0.0.1:{port}/v1", {"model": MODEL, "input": "a"}
        statuses = [
            (await post(url, body, **headers)).status_code
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {KEY}"})
        ]
    assert statuses == [401, 401, 200]


async def test_twenty_callers_at_once_get_their_own_vectors(url: str, embedder: LocalEmbedder) -> None:
    texts = [f"berth {number}" for number in range(20)]
    async with openai.AsyncOpenAI(api_key="none", base_url=url) as client:
        answers = await asyncio.gather(*(client.embeddings.create(model=MODEL, input=text) for text in texts))
    got = np.array([answer.data[0].embedding for answer in answers], np.float32)
    np.testing.assert_array_equal(got, await embedder.embed(texts))


async def test_a_client_that_breaks_off_or_talks_nonsense_harms_nobody(url: str) -> None:
    port = httpx.URL(url).port
    for nonsense in (b"", b"\x16\x03\x01", b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{"):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(nonsense)
        await writer.drain()
        writer.close()
    assert (await post(url, {"model": MODEL, "input": "a"})).status_code == 200


async def test_the_command_serves_on_loopback_and_ends_with_its_standard_input(tmp_path: Path) -> None:
    async with embedding(tmp_path / "embeddings.log") as url:
        assert url.startswith("http://127.0.0.1:")
        assert (await post(url, {"model": MODEL, "input": "a"})).status_code == 200
    with pytest.raises(httpx.ConnectError):
        await post(url, {"model": MODEL, "input": "a"})


async def test_a_cancelled_stop_leaves_no_model_running(tmp_path: Path) -> None:
    """Ctrl-C reaches Postgres first, so that the stop has begun when we are cancelled."""
    children: list[psutil.Process] = []

    async def stack_that_fails() -> None:
        async with embedding(tmp_path / "embeddings.log"):
            children.extend(child for child in psutil.Process().children() if "embeddings-server" in child.cmdline())
            # The stop begins at once, in this turn of the loop; the cancellation comes in the next.
            asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]
            raise RuntimeError("Postgres was interrupted")

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(stack_that_fails())
    assert len(children) == 1
    assert not children[0].is_running()

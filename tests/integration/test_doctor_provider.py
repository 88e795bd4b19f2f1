"""`sluice doctor`, layers provider and machine: each set-up breaks one thing, and that is what is found."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from local.postgres import free_port
from tests.front_door import front_door
from tests.integration.installation import Breaking, Installation, SetUp, found_as, ids, setting
from tests.provider_double import ProviderDouble, Reply
from worker.operate.doctor import provider
from worker.pipeline.embed import minilm

MODEL, DIMENSIONS = "text-embedding-3-small", 1536
HOOK = "hooks.example.org"


@contextlib.asynccontextmanager
async def changed_model(installation: Installation) -> AsyncIterator[None]:
    there = Path(installation.environment["SLUICE_MODEL_DIR"]) / minilm.FOLDER
    here = installation.directory / minilm.FOLDER
    shutil.copytree(there, here)
    with (here / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\x00\x01")
    installation.environment["SLUICE_MODEL_DIR"] = str(installation.directory)
    yield


@contextlib.asynccontextmanager
async def openai_active(installation: Installation) -> AsyncIterator[None]:
    """Let settings and database agree on OpenAI, so that only its own troubles are left."""
    installation.environment |= {"SLUICE_EMBEDDER": "openai", "OPENAI_API_KEY": "sk-of-this-test-only"}
    activate = "select ingest.activate_embedding_model(ingest.add_embedding_model('{}', '{}', {}))"
    async with installation.sql(
        activate.format("openai", MODEL, DIMENSIONS), activate.format("local", minilm.FOLDER, 384), owner=True
    ):
        yield


def openai(models: Reply, embeddings: Reply | None = None) -> Breaking:
    """Script the embedding service; with `embeddings` a token is paid."""

    @contextlib.asynccontextmanager
    async def broken(installation: Installation) -> AsyncIterator[None]:
        async with openai_active(installation), ProviderDouble() as double:
            installation.environment["OPENAI_BASE_URL"] = f"{double.url}/v1"
            double.on("GET", "/v1/models", models)
            if embeddings is not None:
                installation.paid = True
                double.on("POST", "/v1/embeddings", embeddings)
            yield
            assert len(double.requests) == (1 if embeddings is None else 2)

    return broken


@contextlib.asynccontextmanager
async def no_embedding_service(installation: Installation) -> AsyncIterator[None]:
    async with openai_active(installation):
        installation.environment["OPENAI_BASE_URL"] = f"http://127.0.0.1:{free_port()}/v1"
        yield


def llamaparse(status: int, other: int) -> Breaking:
    """Script LlamaParse: what its address says of the key, and what the other region's says."""

    @contextlib.asynccontextmanager
    async def broken(installation: Installation) -> AsyncIterator[None]:
        async with ProviderDouble() as here, ProviderDouble() as there:
            here.on("GET", "/api/v1/projects", Reply(status, []))
            there.on("GET", "/api/v1/projects", Reply(other, []))
            installation.monkeypatch.setattr(provider, "ADDRESSES", (here.url, there.url))
            installation.environment |= {"SLUICE_PARSER": "llama-cloud", "LLAMA_CLOUD_API_KEY": "llx-of-this-test-only"}
            yield

    return broken


def webhook(*, secret: str | None = None, at: str = "/functions/v1/parse-webhook", there: bool = True) -> Breaking:
    """Let SLUICE_WEBHOOK_URL lead to the stack's function, or elsewhere."""

    @contextlib.asynccontextmanager
    async def broken(installation: Installation) -> AsyncIterator[None]:
        installation.behind({HOOK: installation.stack.api_url if there else f"http://127.0.0.1:{free_port()}"})
        installation.environment["SLUICE_WEBHOOK_URL"] = f"https://{HOOK}{at}"
        if secret is not None:
            installation.environment["SLUICE_WEBHOOK_SECRET"] = secret
        yield

    return broken


@contextlib.asynccontextmanager
async def webhook_behind_verify_jwt(installation: Installation) -> AsyncIterator[None]:
    refusal = {"code": 401, "message": "Missing authorization header"}
    async with front_door(installation.stack.api_url, {"/functions/v1/parse-webhook": (401, refusal)}) as door:
        installation.behind({HOOK: door})
        installation.environment["SLUICE_WEBHOOK_URL"] = f"https://{HOOK}/functions/v1/parse-webhook"
        yield


@contextlib.asynccontextmanager
async def temp_dir_below_a_file(installation: Installation) -> AsyncIterator[None]:
    file = installation.directory / "file"
    file.touch()
    installation.environment["SLUICE_TEMP_DIR"] = str(file)
    yield


def lacking(package: str) -> Breaking:
    """Let a package be as if it were not installed."""

    @contextlib.asynccontextmanager
    async def broken(installation: Installation) -> AsyncIterator[None]:
        installation.monkeypatch.setitem(sys.modules, package, None)
        yield

    return broken


KNOWN = Reply(200, {"object": "list", "data": [{"id": MODEL}, {"id": "gpt-5"}]})
SHORT = Reply(200, {"data": [{"index": 0, "embedding": [0.6, 0.8]}], "usage": {"prompt_tokens": 1}})
EMBEDDING: dict[str, SetUp] = {
    "a local model that is missing": (
        setting(SLUICE_MODEL_DIR="/nowhere"), {"local_model": "embedding_model_missing"},
        "python -m worker.pipeline.embed.minilm build --to /nowhere"),
    "a local model of which a byte was changed": (
        changed_model, {"local_model": "embedding_model_changed"}, "their hashes differ"),
    "an embedding model without its runtime": (
        lacking("onnxruntime"), {"local_model": "local_not_installed"}, "not installed: onnxruntime"),
    "OpenAI without a key": (
        setting(SLUICE_EMBEDDER="openai"),
        {"settings_agree": "embedding_key_missing", "embedding_model": "embedding_model_differs"}, "OPENAI_API_KEY"),
    "a key that the embedding service refuses": (
        openai(Reply(401, {"error": {"code": "invalid_api_key", "message": "Incorrect API key provided: sk-of***"}})),
        {"openai": "embedding_key_refused"}, "refuses OPENAI_API_KEY"),
    "an embedding service that is not there": (
        no_embedding_service, {"openai": "embedding_unreachable"}, "Correct OPENAI_BASE_URL"),
    "a model that the embedding service does not know": (
        openai(Reply(200, {"object": "list", "data": [{"id": "gpt-5"}]})), {"openai": "embedding_model_unknown"},
        f"does not know the model {MODEL}"),
    "vectors of another size": (
        openai(KNOWN, SHORT), {"openai_paid": "embedding_dimension"}, f"than SLUICE_EMBED_DIMENSIONS={DIMENSIONS}"),
    "an account that is used up": (
        openai(KNOWN, Reply(429, {"error": {"code": "insufficient_quota", "type": "insufficient_quota"}})),
        {"openai_paid": "embedding_failed"}, "insufficient_quota"),
}  # fmt: skip
# The package of the service stands in an environment of its own, and is missing in this one.
PARSING: dict[str, SetUp] = {
    "a key that LlamaParse refuses": (
        llamaparse(401, 401), {"llamaparse": "llamaparse_key_refused", "parser_package": "parser_not_installed"},
        "refuses LLAMA_CLOUD_API_KEY"),
    "a key of LlamaParse's other region": (
        llamaparse(401, 200), {"llamaparse": "llamaparse_region", "parser_package": "parser_not_installed"},
        "Set LLAMA_CLOUD_BASE_URL=http://127.0.0.1:"),
    "LlamaParse that fails": (
        llamaparse(502, 502), {"llamaparse": "llamaparse_unreachable", "parser_package": "parser_not_installed"},
        "HTTP 502"),
    "a local parser without its libraries": (
        lacking("pypdfium2_raw"), {"parser_package": "local_not_installed"}, "not installed: pypdfium2_raw"),
    "a webhook's address that nobody reaches": (
        webhook(there=False), {"webhook": "webhook_unreachable"}, "cannot be reached (ConnectError"),
    "a webhook's address that is another's": (
        webhook(at="/functions/v1/parse-hook"), {"webhook": "webhook_not_ours"}, "HTTP 404"),
    "a webhook behind verify_jwt": (webhook_behind_verify_jwt, {"webhook": "webhook_not_ours"}, "HTTP 401"),
    "a webhook that takes what is not signed": (
        webhook(secret="whsec_of-this-test-only"), {"webhook": "webhook_takes_unsigned"}, "supabase secrets set"),
}  # fmt: skip
MACHINE: dict[str, SetUp] = {
    "a temporary directory that is a file": (
        temp_dir_below_a_file, {"temp_dir": "temp_dir_unwritable"}, "Not a directory"),
    "a temporary directory without room": (
        setting(SLUICE_MAX_FILE_BYTES=str(1 << 50)), {"temp_dir": "temp_dir_full"}, "4 slots may need"),
    "parsers that may take more memory than there is": (
        setting(SLUICE_PARSE_MEMORY_BYTES=str(1 << 50)), {"memory": "memory_small"}, "Lower SLUICE_SLOTS"),
}  # fmt: skip
WELL: dict[str, SetUp] = {
    "a service that takes the key": (openai(KNOWN), {}, ""),
    "a server that lists no models": (openai(Reply(404, {})), {}, ""),
    "a webhook that is ours": (webhook(), {}, ""),
}


@pytest.mark.parametrize("set_up", ids(EMBEDDING | PARSING | MACHINE))
async def test_the_doctor_finds_what_is_broken_and_nothing_else(installation: Installation, set_up: SetUp) -> None:
    await found_as(installation, set_up)


@pytest.mark.parametrize("set_up", ids(WELL))
async def test_the_doctor_finds_nothing_where_nothing_is_broken(installation: Installation, set_up: SetUp) -> None:
    await found_as(installation, set_up)

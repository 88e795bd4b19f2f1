"""`sluice models`, and what a worker says when its model is not the database's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.conftest import Database
from tests.database.project import Project
from worker.__main__ import active_model, openai_embedder
from worker.db.pool import Database as Pool
from worker.errors import Misconfigured
from worker.model import EmbeddingModel
from worker.operate.cli import sluice
from worker.settings import Settings

OPENAI = ("openai", "text-embedding-3-small", "1536")


@pytest.fixture
async def project(database: Database) -> Project:
    return await Project(database).open()


async def run(database: Database, *arguments: str, role: str = "postgres") -> Result:
    environment = {
        "DATABASE_URL": database.url(role), "SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SECRET_KEY": "sb_secret_x",
    }  # fmt: skip
    return await asyncio.to_thread(CliRunner(env=environment).invoke, sluice, ["models", *arguments])


async def told(database: Database, *arguments: str) -> Any:
    result = await run(database, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


async def test_a_model_is_added_once_and_activated(database: Database, project: Project) -> None:
    added = await told(database, "add", *OPENAI)
    assert await told(database, "add", *OPENAI) == added
    assert (added["provider"], added["name"], added["dimensions"], added["active"]) == (*OPENAI[:2], 1536, False)

    assert (await told(database, "activate", str(added["id"])))["active"] is True
    assert [(row["name"], row["active"]) for row in await told(database, "list")] == [
        ("all-MiniLM-L6-v2", False), ("text-embedding-3-small", True),
    ]  # fmt: skip


async def test_activating_says_how_many_documents_lack_vectors_of_the_model(
    database: Database, project: Project
) -> None:
    user = await project.user()
    await project.ready(user, "a.txt", "one", "two")
    await project.ready(user, "b.txt", "three")
    result = await run(database, "add", *OPENAI, "--activate")
    assert result.exit_code == 0
    assert "2 published documents have no vectors of it: they are found by their words only" in result.output
    assert [row["documents_without_vectors"] for row in await told(database, "list")] == [0, 2]
    listed = await run(database, "list")
    assert "text-embedding-3-small" in listed.output


async def test_a_model_that_is_not_there_cannot_be_activated(database: Database) -> None:
    result = await run(database, "activate", "99")
    assert result.exit_code == 2
    assert "sluice models list" in result.output


async def test_the_workers_own_login_cannot_add_a_model(database: Database) -> None:
    assert (await run(database, "add", *OPENAI, role="ingest_worker")).exit_code == 1


async def test_a_worker_with_another_model_names_the_command_that_activates_its_own(database: Database) -> None:
    pool = await Pool.open(database.url("ingest_worker"), size=1)
    with pytest.raises(Misconfigured, match="sluice models add openai text-embedding-3-small 1536 --activate"):
        await active_model(pool, EmbeddingModel(*OPENAI[:2], 1536, 8191))
    await pool.close()


def settings(**given: Any) -> Settings:
    endpoints = {"DATABASE_URL": "postgresql://x", "SUPABASE_URL": "http://x", "SUPABASE_SECRET_KEY": "sb_secret_x"}
    return Settings(**endpoints, embedder="openai", **given)


async def test_without_a_key_only_a_server_of_ones_own_is_asked() -> None:
    with pytest.raises(Misconfigured, match="OPENAI_API_KEY is not set"):
        openai_embedder(settings())
    embedder = openai_embedder(settings(OPENAI_BASE_URL="http://127.0.0.1:1/v1"))
    await embedder.aclose()


async def test_a_request_is_no_larger_than_what_the_token_limit_lets_through_in_a_moment() -> None:
    embedder = openai_embedder(settings(OPENAI_API_KEY="sk-x", embed_tokens_per_minute=600_000))
    assert embedder.batching.tokens == 25_000
    await embedder.aclose()

"""What these tests share: people of the running stack, and parts of a worker on a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from local import deno
from local.install import MODELS
from local.stack import Stack
from tests.conftest import Database as MigratedDatabase
from tests.database.project import Project as SqlProject
from tests.integration.installation import Installation
from tests.integration.remote_world import World
from tests.people import Person, Project
from worker.db.pool import Database
from worker.pipeline.embed.local import LocalEmbedder


@pytest.fixture
async def project(stack: Stack) -> AsyncIterator[Project]:
    """The database as its operator sees it."""
    connection = await asyncpg.connect(stack.admin_url)
    yield Project(connection)
    await connection.close()


@pytest.fixture
async def ada(stack: Stack) -> AsyncIterator[Person]:
    """A user with a tenant of her own."""
    person = await Person.sign_up(stack)
    yield person
    await person.close()


@pytest.fixture
async def bob(stack: Stack) -> AsyncIterator[Person]:
    """Another user, with another tenant."""
    person = await Person.sign_up(stack)
    yield person
    await person.close()


@pytest.fixture
async def sql(database: MigratedDatabase) -> SqlProject:
    """The project in plain SQL."""
    return await SqlProject(database).open()


@pytest.fixture
async def db(database: MigratedDatabase) -> AsyncIterator[Database]:
    """The worker's own pool."""
    opened = await Database.open(database.url("ingest_worker"), size=4)
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
async def embedder() -> AsyncIterator[LocalEmbedder]:
    """The worker's own embedder."""
    made = LocalEmbedder(MODELS)
    yield made
    await made.aclose()


@pytest.fixture
async def remote(database: MigratedDatabase, embedder: LocalEmbedder, tmp_path: Path) -> AsyncIterator[World]:
    """A worker whose parser is a script."""
    db = await Database.open(database.url("ingest_worker"), size=6)
    made = World(await SqlProject(database).open(), db, embedder, tmp_path)
    yield made
    await made.batcher.aclose()
    await made.local.aclose()
    await db.close()


@pytest.fixture
async def tenant(remote: World) -> UUID:
    """A user of that worker's project."""
    return await remote.sql.user()


@pytest.fixture(scope="session")
async def well(temporary_directory: Path) -> AsyncIterator[Stack]:
    """A stack for the doctor alone, which breaks it; durable, because it looks for that too."""
    async with Stack(temporary_directory / "well") as running:
        yield running


@pytest.fixture
async def installation(well: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Installation]:
    """An installation in which the doctor finds nothing."""
    admin, owner = await asyncpg.connect(well.admin_url), await asyncpg.connect(well.database_url)
    environment = {
        "DATABASE_URL": well.worker_database_url, "SUPABASE_URL": well.api_url, "SUPABASE_SECRET_KEY": well.secret_key,
        "SLUICE_MODEL_DIR": str(deno.REPOSITORY / ".sluice" / "models"), "SLUICE_PARSE_MEMORY_BYTES": str(1 << 28),
    }  # fmt: skip
    yield Installation(well, admin, owner, tmp_path, environment, monkeypatch=monkeypatch)
    admin.terminate()
    owner.terminate()

"""People, and the operator's eye on the database, for tests of the running stack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from local import deno
from local.stack import Stack
from tests.integration.installation import Installation
from tests.people import Person, Project


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

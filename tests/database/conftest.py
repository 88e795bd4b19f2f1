"""What the database's tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import Database
from tests.database.project import Pair, Project
from tests.database.reconciling import Reconciling
from tests.database.situations import Situations
from worker.db.pool import Database as Pool


@pytest.fixture
async def project(database: Database) -> Project:
    """A migrated project with its roles connected."""
    return await Project(database).open()


@pytest.fixture
async def reconciling(project: Project, database: Database) -> AsyncIterator[Reconciling]:
    """The comparison on a project whose trigger can be switched off."""
    pool = await Pool.open(database.url("ingest_worker"), size=2)
    yield Reconciling(project, pool)
    await pool.close()


@pytest.fixture
async def pair(project: Project) -> Pair:
    """Claims on two documents of one tenant."""
    user = await project.user()
    await project.upload(user, "one")
    await project.upload(user, "two")
    first, second = await project.claim()
    return first, second


@pytest.fixture
async def world(project: Project, database: Database, tmp_path: Path) -> AsyncIterator[Situations]:
    """A project whose jobs end as a test tells them to, seen by a worker that lives."""
    db = await Pool.open(database.url("ingest_worker"), size=2)
    made = Situations(project, db, tmp_path)
    await made.worker_lives()
    yield made
    await db.close()

"""What the database's tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import Database
from tests.database.project import Project
from tests.database.reconciling import Reconciling
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

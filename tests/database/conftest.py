"""What the database's tests share."""

from __future__ import annotations

import pytest

from tests.conftest import Database
from tests.database.project import Project


@pytest.fixture
async def project(database: Database) -> Project:
    """A migrated project with its roles connected."""
    return await Project(database).open()

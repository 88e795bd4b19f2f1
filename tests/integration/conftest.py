"""People, and the operator's eye on the database, for tests of the running stack."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from local.stack import Stack
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

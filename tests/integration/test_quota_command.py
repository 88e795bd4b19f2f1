"""`sluice quota`: limits by name, what is not named stays, and what is used of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result

import worker.__main__  # noqa: F401 - registers the commands
from tests.conftest import Database
from tests.database.project import Project
from worker.operate.cli import sluice

NONE = {"bytes": None, "files": None, "pages_month": None, "running": None}


@pytest.fixture
async def project(database: Database) -> Project:
    return await Project(database).open()


async def run(database: Database, *arguments: str) -> Result:
    environment = {
        "DATABASE_URL": database.url("ingest_worker"), "SUPABASE_URL": "http://127.0.0.1:1",
        "SUPABASE_SECRET_KEY": "sb_secret_x",
    }  # fmt: skip
    return await asyncio.to_thread(CliRunner(env=environment).invoke, sluice, ["quota", *arguments])


async def told(database: Database, *arguments: str) -> Any:
    result = await run(database, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


async def listed(database: Database, tenant: UUID | None) -> dict[str, Any]:
    rows = (await told(database, "list"))["quotas"]
    found: dict[str, Any] = next(row for row in rows if row["tenant"] == (tenant and str(tenant)))
    return found


async def test_a_project_without_quotas_lists_everybody_without_limits(database: Database) -> None:
    assert (await told(database, "list"))["quotas"] == [
        {"tenant": None, **NONE, "bytes_kept": None, "files_kept": None, "pages_read": None, "running_now": None}
    ]
    assert "everybody else" in (await run(database, "list")).output


async def test_what_is_not_named_stays_and_none_takes_a_limit_away(database: Database, project: Project) -> None:
    user = await project.user()
    assert (await told(database, "set", str(user), "--bytes", "2K", "--running", "3"))["bytes"] == 2048
    said = await told(database, "set", str(user), "--files", "5", "--running", "none")
    assert said == {"tenant": str(user), **NONE, "bytes": 2048, "files": 5, "came_back": 0}
    row = await listed(database, user)
    assert {name: row[name] for name in NONE} == NONE | {"bytes": 2048, "files": 5}


async def test_the_list_says_what_is_used(database: Database, project: Project) -> None:
    user = await project.user()
    await project.upload(user, "a.txt", size=60)
    await project.ready(user, "b.txt", "one", "two")
    await project.upload(user, "c.txt", size=40)
    await project.claim()
    await told(database, "set", str(user), "--files", "9")
    row = await listed(database, user)
    assert (row["files_kept"], row["pages_read"]) == (3, 2)
    assert row["bytes_kept"] >= 100
    assert row["running_now"] == 2
    assert "3 of 9" in (await run(database, "list")).output


async def test_everybodys_quota_is_raised_and_refused_files_come_back(database: Database, project: Project) -> None:
    user = await project.user()
    said = await run(database, "set", "--everybody", "--files", "0")
    assert said.output.startswith("Every tenant without a quota of its own may have: any number of bytes, 0 files")
    await project.upload(user, "a.txt")
    (claim,) = await project.claim()
    await project.worker.execute("select ingest.refuse_over_quota($1, $2, 'too many')", claim["job_id"], claim["claim"])
    said = await run(database, "set", "--everybody", "--files", "none")
    assert said.output.endswith("1 files that were refused come back.\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Give a tenant's id, or --everybody."),
        (("--everybody",), "Name what is to be set"),
        (("--everybody", "--bytes", "many"), "Give a whole number"),
        (("--everybody", "--files", "2K"), "Give a whole number"),
        (("--everybody", "--running", "0"), "0 is not between 1 and"),
        (("--everybody", "--bytes", "9999T"), "is not between 0 and"),
        (("no-uuid", "--files", "1"), "not a valid UUID"),
    ],
)
async def test_wrong_usage_says_what_to_give(database: Database, arguments: tuple[str, ...], sentence: str) -> None:
    result = await run(database, "set", *arguments)
    assert result.exit_code == 2
    assert sentence in result.output


async def test_a_tenant_that_is_not_there_is_named(database: Database) -> None:
    tenant = str(uuid4())
    result = await run(database, "set", tenant, "--files", "1")
    assert (result.exit_code, f"There is no tenant {tenant}." in result.output) == (1, True)

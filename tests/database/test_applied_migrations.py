"""`sluice migrations check`: what ends a deploy whose workers would call what is not there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from local import deno
from tests.conftest import Database
from worker.__main__ import sluice
from worker.operate import migrations

NAMES = sorted(file.stem for file in (deno.REPOSITORY / "supabase" / "migrations").glob("*.sql"))


async def check(url: str, *arguments: str) -> Result:
    environment = {"DATABASE_URL": url, "SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SECRET_KEY": "sb_secret_x"}
    return await asyncio.to_thread(CliRunner(env=environment).invoke, sluice, ["migrations", "check", *arguments])


async def test_a_database_with_all_migrations_passes_with_the_workers_login(database: Database) -> None:
    result = await check(database.url("ingest_worker"))

    assert result.exit_code == 0, result.output
    assert result.output == f"The database has all {len(NAMES)} migrations of this version.\n"


async def test_a_database_that_lacks_some_ends_the_deploy_and_names_them(database: Database) -> None:
    owner = await database.connect()
    await owner.execute(
        "delete from supabase_migrations.schema_migrations where version = any ($1::text[])",
        [name.partition("_")[0] for name in (NAMES[3], NAMES[-1])],
    )

    told = await check(database.url("ingest_worker"), "--json")
    result = await check(database.url("ingest_worker"))

    assert told.exit_code == result.exit_code == 1
    assert json.loads(told.stdout) == {
        "carried": len(NAMES), "applied": len(NAMES) - 2, "lacking": [NAMES[3], NAMES[-1]],
    }  # fmt: skip
    assert f"lacks 2 of the {len(NAMES)} migrations of this version:\n  {NAMES[3]}\n" in result.stderr
    assert "scripts/deploy" in result.stderr
    assert result.stdout == ""


async def test_a_migration_of_another_name_under_the_same_stamp_is_not_ours(database: Database) -> None:
    owner = await database.connect()
    await owner.execute(
        "update supabase_migrations.schema_migrations set name = 'something_else' where version = $1",
        NAMES[0].partition("_")[0],
    )

    assert (await check(database.url("ingest_worker"))).exit_code == 1


async def test_a_database_that_is_ahead_passes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "carried", lambda: NAMES[:-1])

    result = await check(database.url("ingest_worker"), "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"carried": len(NAMES) - 1, "applied": len(NAMES), "lacking": []}


async def test_a_database_without_a_history_lacks_everything(database: Database) -> None:
    owner = await database.connect()
    await owner.execute("drop schema supabase_migrations cascade")

    result = await check(database.url("ingest_worker"))

    assert result.exit_code == 1
    assert f"lacks {len(NAMES)} of the {len(NAMES)} migrations" in result.stderr
    assert f"and {len(NAMES) - 10} more" in result.stderr


async def test_a_database_that_is_not_ours_at_all_is_told_from_one_that_lacks_some(database: Database) -> None:
    owner = await database.connect()
    await owner.execute("drop function ingest.list_applied_migrations()")

    result = await check(database.url("ingest_worker"))

    assert result.exit_code == 1
    assert "An operator must apply the migrations." in result.stderr


def test_the_wheel_would_carry_what_the_checkout_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "20260101000000_packed.sql").touch()
    (tmp_path / "migrations" / "notes.md").touch()

    assert migrations.carried() == NAMES
    monkeypatch.setattr(migrations, "files", lambda package: tmp_path)
    assert migrations.carried() == ["20260101000000_packed"]

"""scripts/deploy to a project to which this checkout was deployed: what it changes, refuses and asks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from dotenv import dotenv_values

from local.deploy.environment import MASK
from tests.integration.deploying import HISTORY, Project, project

# A deployment takes two seconds on a quiet machine and ten on a busy one, and some tests make three.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
async def once(temporary_directory: Path) -> AsyncIterator[Project]:
    """A project to which this checkout was deployed."""
    async with project(temporary_directory / "deploy-again") as made:
        done = await made.deploy()
        assert done.code == 0, done.out + done.err
        yield made


@pytest.fixture
def deployed(once: Project) -> Project:
    """The same, with nothing left of what an earlier test had it asked."""
    once.management.requests.clear()
    return once


async def test_a_migration_that_only_the_database_has_is_refused(deployed: Project) -> None:
    await deployed.execute(f"insert into {HISTORY} (version, name) values ('20991231000000', 'from_elsewhere')")
    try:
        done = await deployed.deploy(SLUICE_CORS_ORIGINS="*")
    finally:
        await deployed.execute(f"delete from {HISTORY} where version = '20991231000000'")

    assert done.code == 3
    assert done.step("history")["status"] == "failed"
    assert done.step("history")["said"] == (
        "The database has the migration 20991231000000_from_elsewhere, which this checkout lacks. Something else was "
        "deployed there: bring this checkout up to date (git pull), or deploy from the one that it came from."
    )
    assert set(done.statuses().values()) == {"unchanged", "failed", "not_reached"}
    assert deployed.management.changes() == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("statements = array['select 1']", "was applied with another text than this checkout has"),
        ("name = 'another'", "The database has 20261123000200_another where this checkout has 20261123000200_tenants"),
    ],
)
async def test_a_changed_history_is_refused(deployed: Project, change: str, sentence: str) -> None:
    await deployed.execute(f"create table public.before as select * from {HISTORY} where version = '20261123000200'")
    await deployed.execute(f"update {HISTORY} set {change} where version = '20261123000200'")
    try:
        done = await deployed.deploy()
    finally:
        await deployed.execute(f"delete from {HISTORY} where version = '20261123000200'")
        await deployed.execute(f"insert into {HISTORY} table public.before")
        await deployed.execute("drop table public.before")

    assert done.code == 3
    assert sentence in done.step("history")["said"]
    assert deployed.management.changes() == []


async def test_a_migration_that_was_left_out_is_refused(deployed: Project) -> None:
    await deployed.execute(f"create table public.before as select * from {HISTORY} where version = '20261123000200'")
    await deployed.execute(f"delete from {HISTORY} where version = '20261123000200'")
    try:
        done = await deployed.deploy()
    finally:
        await deployed.execute(f"insert into {HISTORY} table public.before")
        await deployed.execute("drop table public.before")

    assert done.code == 3
    assert "The migration 20261123000200_tenants is not in the database, but the later " in done.step("history")["said"]


async def test_only_what_differs_is_changed(deployed: Project) -> None:
    done = await deployed.deploy(SLUICE_CORS_ORIGINS="https://app.example.com")

    assert done.code == 0
    assert [name for name, status in done.statuses().items() if status == "changed"] == ["hook settings"]
    (sent,) = deployed.management.changes()
    assert sent.json == [{"name": "SLUICE_CORS_ORIGINS", "value": "https://app.example.com"}]


async def test_functions_that_somebody_else_deployed_are_deployed_again(deployed: Project) -> None:
    deployed.management.functions["search"] |= {"ezbr_sha256": "0" * 64}

    done = await deployed.deploy()
    again = await deployed.deploy()

    assert done.step("functions")["status"] == "changed"
    assert again.statuses()["functions"] == "unchanged"


async def test_show_prints_the_whole_environment(deployed: Project) -> None:
    done = await deployed.deploy("--yes", "--show")

    assert done.code == 0
    assert f"SUPABASE_SECRET_KEY={deployed.stack.secret_key}" in done.out
    assert MASK not in done.out


async def test_a_password_from_elsewhere_is_left_alone_until_another_is_asked_for(deployed: Project) -> None:
    first = dotenv_values(deployed.kept_environment)["DATABASE_URL"]
    deployed.kept_environment.unlink()

    left = await deployed.deploy()
    rotated = await deployed.deploy("--yes", "--json", "--rotate-password")

    assert left.code == 0
    assert left.step("worker login")["status"] == "unchanged"
    assert "is not known here" in left.step("worker login")["warnings"][0]
    assert rotated.step("worker login")["status"] == "changed"
    second = dotenv_values(deployed.kept_environment)["DATABASE_URL"]
    await (await asyncpg.connect(second)).close()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(first)


async def test_a_given_password_is_set_where_another_one_was(deployed: Project) -> None:
    await deployed.execute("alter role ingest_worker password 'somebody else set this'")

    done = await deployed.deploy()
    again = await deployed.deploy()

    assert done.step("worker login")["status"] == "changed"
    assert again.step("worker login")["status"] == "unchanged"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"SUPABASE_ACCESS_TOKEN": "sbp_" + "9" * 40}, "Supabase does not know SUPABASE_ACCESS_TOKEN"),
        ({"SUPABASE_PROJECT_REF": "z" * 20}, f"There is no project {'z' * 20} that SUPABASE_ACCESS_TOKEN may see"),
        ({"SUPABASE_SECRET_KEY": "sb_secret_of_another_project"}, "does not know SUPABASE_SECRET_KEY"),
        ({"SUPABASE_DB_URL": "postgresql://postgres:wrong-password@127.0.0.1:{port}/postgres"}, "refused postgres"),
        ({"SUPABASE_DB_URL": "postgresql://postgres:wrong-password@127.0.0.1:1/postgres"}, "did not answer"),
        ({"SUPABASE_URL": "http://127.0.0.1:1"}, "does not answer"),
    ],
)
async def test_a_door_that_does_not_open_is_found_before_anything_changes(
    deployed: Project, settings: dict[str, str], sentence: str
) -> None:
    port = str(deployed.stack.cluster.port)

    done = await deployed.deploy(**{name: value.replace("{port}", port) for name, value in settings.items()})

    assert done.code == 1
    assert done.step("settings")["status"] == "failed"
    assert sentence in done.step("settings")["said"]
    assert set(list(done.statuses().values())[1:]) == {"not_reached"}
    assert deployed.management.changes() == []


async def test_a_hosted_project_is_not_changed_where_nobody_can_be_asked(deployed: Project) -> None:
    done = await deployed.deploy("--json", SLUICE_CORS_ORIGINS="https://other.example.com")

    assert done.code == 2
    assert "Nobody is here to ask, and nothing was changed." in done.err
    assert done.json == {"error": done.json["error"], "exit_code": 2}
    assert deployed.management.changes() == []


@pytest.mark.parametrize(("answer", "code", "count"), [("n", 1, 0), ("y", 0, 1)])
async def test_a_person_is_asked_once_before_a_hosted_project_is_changed(
    deployed: Project, answer: str, code: int, count: int
) -> None:
    ours, theirs = os.openpty()
    try:
        process = await deployed.start(stdin=theirs, SLUICE_CORS_ORIGINS="https://asked.example.com")
        os.write(ours, f"{answer}\n".encode())
        out, err = await asyncio.wait_for(process.communicate(), 120)
    finally:
        os.close(ours)
        os.close(theirs)

    assert process.returncode == code, out + err
    assert out.count(b"[y/N]") == 1
    assert (b"Nothing was changed." in err) is (answer == "n")
    assert len(deployed.management.changes()) == count


@pytest.mark.parametrize(
    ("options", "settings", "sentence"),
    [
        (["--nonsense"], {}, "--nonsense"),
        (["--dry-run"], {"SLUICE_TARGET": "cloud"}, "SLUICE_TARGET is cloud; it must be hosted or local."),
        (["--target", "local", "--rotate-password"], {}, "--rotate-password is for hosted projects"),
    ],
)
async def test_wrong_usage_ends_with_2(
    deployed: Project, options: list[str], settings: dict[str, str], sentence: str
) -> None:
    done = await deployed.deploy(*options, **settings)

    assert done.code == 2
    assert sentence in done.err


async def test_a_local_target_without_a_stack_says_how_to_start_one(deployed: Project, tmp_path: Path) -> None:
    done = await deployed.deploy("--target", "local", "--directory", str(tmp_path), "--json")

    assert done.code == 1
    assert done.json["error"] == (
        f"Nothing runs in {tmp_path}. Start a stack there first: python -m local up --directory {tmp_path}"
    )


async def test_settings_that_are_missing_are_named_all_at_once(deployed: Project) -> None:
    missing = ["SUPABASE_URL", "SUPABASE_DB_URL", "SUPABASE_SECRET_KEY", "SUPABASE_ACCESS_TOKEN"]

    done = await deployed.deploy("--dry-run", without=missing)

    assert done.code == 2
    assert [name for name in missing if f"{name} is not set" not in done.err] == []


async def test_ctrl_c_changes_nothing_while_it_looks_and_ends_with_130(deployed: Project) -> None:
    deployed.management.held = asyncio.Event()
    try:
        process = await deployed.start("--yes", "--json", SLUICE_CORS_ORIGINS="https://third.example.com")
        while not deployed.management.sent("GET", "*/secrets"):  # noqa: ASYNC110 - the double counts, and tells nobody
            await asyncio.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        out, _ = await asyncio.wait_for(process.communicate(), 20)
    finally:
        deployed.management.held = None

    assert process.returncode == 130
    assert json.loads(out.splitlines()[-1])["exit_code"] == 130
    assert deployed.management.changes() == []


async def test_two_deployments_at_once_do_not_meet(deployed: Project) -> None:
    connection = await asyncpg.connect(deployed.stack.database_url)
    await connection.execute("select pg_advisory_lock(hashtextextended('sluice deploy', 0))")

    done = await deployed.deploy(SLUICE_CORS_ORIGINS="https://fourth.example.com")
    await connection.close()

    assert done.code == 1
    assert done.json["error"].startswith("Another deployment to this database is under way.")
    assert deployed.management.changes() == []

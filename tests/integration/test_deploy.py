"""scripts/deploy against projects before and after their first deployment."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import asyncpg
import pytest
from dotenv import dotenv_values

from local.deno import REPOSITORY
from local.deploy import run
from local.deploy.environment import MASK
from local.deploy.step import Outcome, Status
from local.deploy.target import FUNCTION_SETTINGS
from local.stack import Stack
from tests.integration.deploying import SETTINGS, STEPS, Project, environment, project
from tests.management_double import TOKEN

# A deployment takes two seconds on a quiet machine and ten on a busy one, and some tests make three.
pytestmark = pytest.mark.timeout(300)

_numbers = count(1)
HISTORY = "supabase_migrations.schema_migrations"
FUNCTIONS = sorted(
    each.parent.name
    for each in (REPOSITORY / "supabase" / "functions").glob("*/index.ts")
    if not each.parent.name.startswith("_")
)


@pytest.fixture
async def empty(temporary_directory: Path) -> AsyncIterator[Project]:
    """A project to which nothing was deployed."""
    async with project(temporary_directory / f"deploy-{next(_numbers)}") as made:
        yield made


@pytest.fixture(scope="module")
async def once(temporary_directory: Path) -> AsyncIterator[Project]:
    """A project to which this checkout was deployed."""
    async with project(temporary_directory / f"deploy-{next(_numbers)}") as made:
        done = await made.deploy()
        assert done.code == 0, done.out + done.err
        yield made


@pytest.fixture
def deployed(once: Project) -> Project:
    """The same, with nothing left of what an earlier test had it asked."""
    once.management.requests.clear()
    return once


async def test_a_dry_run_on_an_empty_project_names_every_change_and_makes_none(empty: Project) -> None:
    before = empty.dump()

    done = await empty.deploy("--dry-run", "--json")

    assert done.code == 0, done.err
    assert list(done.statuses()) == STEPS
    files = sorted(path.stem for path in (REPOSITORY / "supabase" / "migrations").glob("*.sql"))
    assert done.step("migrations")["changes"] == [f"apply {name}" for name in files]
    assert done.step("worker login")["changes"] == [
        f"set the password of ingest_worker, and keep it in {empty.kept_environment}"
    ]
    assert done.step("hook settings")["changes"] == [
        "set SLUICE_GIT_SHA", "set SLUICE_EMBEDDINGS_URL", "set SLUICE_EMBEDDINGS_KEY", "set SLUICE_WEBHOOK_SECRET",
    ]  # fmt: skip
    assert done.step("functions")["changes"] == [f"deploy {name}" for name in FUNCTIONS]
    assert done.json["changed"] is False
    assert empty.dump() == before
    assert empty.management.changes() == []
    assert not empty.kept.exists()


async def test_the_first_run_does_everything_and_the_second_finds_nothing_to_do(empty: Project) -> None:
    first = await empty.deploy()

    assert first.code == 0, first.out + first.err
    assert [name for name, status in first.statuses().items() if status == "changed"] == [
        "migrations", "worker login", "hook settings", "functions",
    ]  # fmt: skip
    connection = await asyncpg.connect(empty.stack.database_url)
    applied = await connection.fetchval(f"select count(*) from {HISTORY}")
    await connection.close()
    assert applied == len(list((REPOSITORY / "supabase" / "migrations").glob("*.sql")))
    kept = dotenv_values(empty.kept_environment, interpolate=False)
    worker = await asyncpg.connect(kept["DATABASE_URL"])
    assert await worker.fetchval("select current_user") == "ingest_worker"
    await worker.close()
    assert kept["SUPABASE_SECRET_KEY"] == empty.stack.secret_key
    assert kept["SLUICE_WEBHOOK_SECRET"] == "a-new-secret-0123456789#1"
    assert kept["OPENAI_API_KEY"] == SETTINGS["OPENAI_API_KEY"]
    assert "SLUICE_EMBEDDINGS_KEY" not in kept
    assert stat.S_IMODE(empty.kept_environment.stat().st_mode) == 0o600
    assert stat.S_IMODE(empty.kept.stat().st_mode) == 0o700
    for name in ("SLUICE_EMBEDDINGS_URL", "SLUICE_EMBEDDINGS_KEY", "SLUICE_WEBHOOK_SECRET"):
        assert empty.management.secrets[name] == SETTINGS[name]
    assert re.fullmatch("[0-9a-f]{40}", empty.management.secrets["SLUICE_GIT_SHA"])
    assert sorted(empty.management.functions) == FUNCTIONS
    assert {each["verify_jwt"] for each in empty.management.functions.values()} == {False}
    assert "supabase/functions/_shared/project.ts" in empty.management.files["search"]
    before = empty.dump()
    empty.management.requests.clear()

    second = await empty.deploy()

    assert second.code == 0, second.out + second.err
    assert second.statuses() == dict.fromkeys(STEPS, "unchanged")
    assert all(each["said"] for each in second.json["steps"])
    assert second.json["changed"] is False
    assert empty.dump() == before
    assert empty.management.changes() == []
    assert "Nothing was to be changed." in second.err


async def test_a_failing_migration_leaves_the_rest_undone_and_says_where(
    empty: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPABASE_PROFILE", empty.settings["SUPABASE_PROFILE"])
    shutil.copytree(REPOSITORY / "supabase", tmp_path / "supabase", ignore=shutil.ignore_patterns(".temp"))
    folder = tmp_path / "supabase" / "migrations"
    bad, after = folder / "20991231000000_bad.sql", folder / "20991231000001_after.sql"
    bad.write_text("create table public.half (id int);\nselect 1 / 0;\n")
    after.write_text("create table public.later (id int);\n")
    target = replace(empty.target(), project=tmp_path)
    told: list[Outcome] = []

    outcomes = {each.step: each for each in await run.carry_out(target, told.append)}

    count = len(list(folder.glob("*.sql")))
    failed = outcomes["migrations"]
    assert failed.status is Status.FAILED
    assert failed.said.startswith("20991231000000_bad.sql failed: ")
    assert "22012" in failed.said
    assert f"{count - 2} of {count} were applied and stand; this one was undone, and 1 after it" in failed.said
    assert told == list(outcomes.values())
    assert {each.status for name, each in outcomes.items() if STEPS.index(name) > 2} == {Status.NOT_REACHED}
    assert empty.management.changes() == []
    assert not empty.kept.exists()

    bad.write_text("create table public.half (id int);\n")
    again = {each.step: each.status for each in await run.carry_out(target, told.append)}

    assert again["migrations"] is Status.CHANGED
    assert Status.FAILED not in again.values()


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


async def test_no_secret_is_printed_or_can_be_seen_among_the_processes(empty: Project) -> None:
    password = "a-password-of-the-owner's-choice"
    secrets = [
        password, TOKEN, empty.stack.secret_key, SETTINGS["SLUICE_EMBEDDINGS_KEY"], SETTINGS["OPENAI_API_KEY"],
        SETTINGS["SLUICE_WEBHOOK_SECRET"], empty.stack.secrets.passwords["postgres"],
    ]  # fmt: skip
    seen: set[bytes] = set()

    process = await empty.start("--yes", SLUICE_WORKER_PASSWORD=password)
    reading = asyncio.ensure_future(process.communicate())
    while not reading.done():
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(file.read_bytes())
            except OSError:
                continue
        await asyncio.wait({reading}, timeout=0.02)
    out, err = await reading

    assert process.returncode == 0, out + err
    assert any(b"db\0push" in line for line in seen)
    assert any(b"secrets\0set" in line for line in seen)
    said = out + err + b"\n".join(seen)
    assert [secret for secret in secrets if secret.encode() in said] == []
    assert f"SUPABASE_SECRET_KEY={MASK}" in out.decode()
    assert f"DATABASE_URL=postgresql://ingest_worker:{MASK}@127.0.0.1:" in out.decode()


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


async def test_a_local_stack_is_deployed_to_by_the_script(temporary_directory: Path, tmp_path: Path) -> None:
    async with Stack(temporary_directory / f"deploy-{next(_numbers)}", durable=False, bare=True) as stack:
        script = [REPOSITORY / "scripts" / "deploy", "--target", "local", "--directory", stack.directory]

        def deploy() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*script, "--keep", tmp_path / "kept"], env=environment({}), capture_output=True, text=True,
                timeout=100, check=False,
            )  # fmt: skip

        first = await asyncio.to_thread(deploy)
        second = await asyncio.to_thread(deploy)
        worker = await asyncpg.connect(stack.worker_database_url)
        await worker.close()

    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"^migrations +changed +Applied \d+ migrations\.$", first.stdout, re.MULTILINE)
    assert f"runs {', '.join(FUNCTIONS)} from this folder. Each answers." in first.stdout
    assert second.returncode == 0, second.stdout + second.stderr
    assert re.findall(r"^(.{18}) unchanged ", second.stdout, re.MULTILINE) == [f"{step:<18}" for step in STEPS]
    assert "Nothing was to be changed." in second.stdout


def test_every_setting_that_a_function_reads_is_deployed() -> None:
    read: set[str] = set()
    for file in (REPOSITORY / "supabase" / "functions").rglob("*.ts"):
        read |= set(re.findall(r"""["'](SLUICE_\w+)["']""", file.read_text()))

    assert {"SLUICE_EMBEDDINGS_URL", "SLUICE_WEBHOOK_SECRET"} <= read <= set(FUNCTION_SETTINGS)

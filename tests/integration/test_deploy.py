"""scripts/deploy to a project or a local stack to which nothing was deployed."""

from __future__ import annotations

import asyncio
import re
import shutil
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
from tests.integration.deploying import HISTORY, SETTINGS, STEPS, Project, environment, project
from tests.management_double import TOKEN

# A deployment takes two seconds on a quiet machine and ten on a busy one, and some tests make three.
pytestmark = pytest.mark.timeout(300)

_numbers = count(1)
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

"""`sluice jobs` and `sluice queue` with the worker's login: looking, retrying, cancelling, pausing."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result

import worker.__main__  # noqa: F401 - adds the commands to the group
from tests.conftest import Database
from tests.database.project import Project
from worker.operate.cli import sluice


@pytest.fixture
async def project(database: Database) -> Project:
    return await Project(database).open()


def environment(database: Database, role: str = "ingest_worker") -> dict[str, str]:
    return {
        "DATABASE_URL": database.url(role), "SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SECRET_KEY": "sb_secret_x",
        "DATABASE_POOLER": "session",
    }  # fmt: skip


async def run(database: Database, *arguments: str, answer: str = "") -> Result:
    return await asyncio.to_thread(CliRunner(env=environment(database)).invoke, sluice, arguments, input=answer)


async def told(database: Database, *arguments: str, code: int = 0) -> Any:
    """Return the object that stands on the last line of stdout."""
    result = await run(database, *arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout.splitlines()[-1])


async def discarded(project: Project, tenant: UUID, name: str, code: str = "no_text") -> int:
    """Let a file be given up; return its job."""
    document = await project.upload(tenant, name)
    for claim in await project.claim():
        await project.worker.execute(
            "select ingest.discard_job($1, $2, $3, 'It cannot be read.', null)", claim["job_id"], claim["claim"], code
        )
    found: int = await project.owner.fetchval("select id from public.jobs where document_id = $1", document)
    return found


async def states(project: Project) -> dict[int, str]:
    return {row["id"]: row["state"] for row in await project.owner.fetch("select id, state from public.jobs")}


async def test_pages_follow_each_other_without_a_gap_while_jobs_are_added(database: Database, project: Project) -> None:
    user = await project.user()
    jobs = await project.enqueue(user, 7)
    seen: list[int] = []
    before: tuple[str, ...] = ()
    while True:
        page = await told(database, "jobs", "list", "--limit", "3", *before)
        seen += [job["id"] for job in page["jobs"]]
        await project.enqueue(user)
        if page["next"] is None:
            break
        before = ("--before", str(page["next"]))
    assert seen == sorted(jobs, reverse=True)


async def test_each_filter_narrows_the_list(database: Database, project: Project) -> None:
    ada, bob = await project.user(), await project.user()
    failed = await discarded(project, ada, "reports/a.txt", "pdf_encrypted")
    waiting = await project.owner.fetchval(
        "select id from public.jobs where document_id = $1", await project.upload(bob, "b.txt")
    )
    (running,) = await project.enqueue(bob)
    await project.owner.execute("update public.jobs set scheduled_at = now() + interval '1 h' where id = $1", waiting)
    await project.claim()
    document = str((await project.job(failed))["document_id"])
    for filters, expected in (
        (("--state", "discarded"), [failed]),
        (("--state", "discarded", "--state", "running"), [running, failed]),
        (("--tenant", str(bob)), [running, waiting]),
        (("--code", "pdf_encrypted"), [failed]),
        (("--stage", "fetch", "--state", "running"), [running]),
        (("--document", document), [failed]),
        (("--document", "a.txt"), [failed]),
        (("--document", "reports/a.txt"), [failed]),
        (("--document", f"{ada}/reports/a.txt"), [failed]),
        (("--document", "ts/a.txt"), []),
        (("--since", "1h"), [running, waiting, failed]),
        (("--tenant", str(bob), "--state", "available"), [waiting]),
    ):
        page = await told(database, "jobs", "list", *filters)
        assert [job["id"] for job in page["jobs"]] == expected, filters

    await project.owner.execute(
        "update public.jobs set created_at = now() - interval '3 h', started_at = now() - interval '3 h' where id = $1",
        running,
    )
    assert running not in [job["id"] for job in (await told(database, "jobs", "list", "--since", "2h"))["jobs"]]
    assert running in [job["id"] for job in (await told(database, "jobs", "list", "--since", "1d"))["jobs"]]


async def test_a_pipe_gets_a_line_a_job_in_which_no_name_moves_the_cursor(database: Database, project: Project) -> None:
    user = await project.user()
    await project.upload(user, "a\x1b[2J[red]\u202etxt.exe")
    result = await run(database, "jobs", "list")
    (line,) = result.stdout.splitlines()
    assert line.split("\t")[1:5] == ["available", "", "0/5", ""]
    assert line.endswith(r"a\u001b[2J[red]\u202etxt.exe")


async def test_no_jobs_are_an_answer_and_no_failure(database: Database, project: Project) -> None:
    result = await run(database, "jobs", "list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No job matches.\n")
    assert await told(database, "jobs", "list") == {"jobs": [], "next": None}


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "list", "--state", "done"), ("jobs", "list", "--since", "yesterday"), ("jobs", "list", "--limit", "0"),
        ("jobs", "list", "--since", "2999-01-01"), ("jobs", "list", "--tenant", "me"), ("jobs", "retry"),
        ("jobs", "cancel"), ("jobs", "retry", "1", "--code", "x"), ("jobs", "retry", "--state", "running"),
        ("jobs", "cancel", "--state", "discarded"), ("jobs", "retry", "--code", "x", "--limit", "10001"),
        ("jobs", "retry", "a.txt"), ("jobs", "explain"), ("queue", "stop"), ("jobs", "watch", "--interval", "0"),
    ],
)  # fmt: skip
async def test_a_wrong_argument_is_refused_with_2_before_anything_is_asked(arguments: tuple[str, ...]) -> None:
    nowhere = {"DATABASE_URL": "postgresql://w:hush@127.0.0.1:1/x", "SUPABASE_URL": "http://127.0.0.1:1",
               "SUPABASE_SECRET_KEY": "sb_secret_x"}  # fmt: skip
    result = await asyncio.to_thread(CliRunner(env=nowhere).invoke, sluice, arguments)
    assert result.exit_code == 2, result.output


@pytest.mark.parametrize(
    "arguments", [("jobs", "list"), ("jobs", "explain", "1"), ("queue", "status"), ("jobs", "watch")]
)
async def test_a_database_that_does_not_answer_is_told_without_its_password(arguments: tuple[str, ...]) -> None:
    nowhere = {"DATABASE_URL": "postgresql://w:hush@127.0.0.1:1/x", "SUPABASE_URL": "http://127.0.0.1:1",
               "SUPABASE_SECRET_KEY": "sb_secret_x"}  # fmt: skip
    result = await asyncio.to_thread(CliRunner(env=nowhere).invoke, sluice, arguments)
    assert result.exit_code == 1
    assert "did not answer" in result.stderr
    assert "hush" not in result.output


async def test_a_job_is_found_by_its_id_its_documents_id_and_its_files_name(
    database: Database, project: Project
) -> None:
    user = await project.user()
    job = await discarded(project, user, "harbour/night watch.md")
    document = str((await project.job(job))["document_id"])
    for reference in (str(job), document, "night watch.md", "harbour/night watch.md", f"{user}/harbour/night watch.md"):
        for command in ("explain", "show"):
            assert (await told(database, "jobs", command, reference))["job"]["id"] == job

    await project.overwrite(UUID(document))
    newest = await told(database, "jobs", "explain", "night watch.md")
    assert newest["job"]["generation"] == 2

    await project.remove(user, UUID(document))
    assert (await told(database, "jobs", "explain", document))["cause"]["rule"] == "object_deleted"


async def test_an_upload_without_a_document_is_found_by_its_name(database: Database, project: Project) -> None:
    stored = await project.upload("nobody", "lost.txt")
    for reference in ("lost.txt", "nobody/lost.txt", str(stored)):
        report = await told(database, "jobs", "explain", reference)
        assert (report["cause"]["rule"], report["object"]["id"]) == ("no_tenant_folder", str(stored))
    result = await run(database, "jobs", "explain", "lost.txt")
    assert result.stdout.startswith(f"Object {stored}  no document  nobody/lost.txt\n")
    shown = await run(database, "jobs", "show", "lost.txt")
    assert "name\tnobody/lost.txt" in shown.stdout.splitlines()


async def test_what_is_not_there_ends_with_1_and_what_is_not_clear_with_2(database: Database, project: Project) -> None:
    await project.upload(await project.user(), "same.txt")
    await project.upload(await project.user(), "same.txt")
    for command in ("explain", "show", "watch"):
        for missing in ("4711", str(uuid4()), "nothing.txt"):
            result = await run(database, "jobs", command, missing)
            assert result.exit_code == 1, result.output
            assert missing in result.stderr
        several = await run(database, "jobs", command, "same.txt")
        assert several.exit_code == 2
        assert several.stderr.count("/same.txt") == 2


async def test_an_explanation_reads_as_sentences(database: Database, project: Project) -> None:
    job = await discarded(project, await project.user(), "a.txt", "pdf_encrypted")
    result = await run(database, "jobs", "explain", str(job))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"Job {job}  discarded  ")
    assert lines[2].startswith("Cause   parser: It cannot be read.  (since 20")
    assert "Do      Tell the owner: only another file helps." in lines
    assert sum(line.startswith("Longest ") for line in lines) == 1


async def test_jobs_are_retried_by_id_and_each_that_cannot_be_says_why(database: Database, project: Project) -> None:
    user = await project.user()
    good, deleted = await discarded(project, user, "a.txt"), await discarded(project, user, "b.txt")
    ready = await project.ready(user, "c.txt", "text")
    done = await project.owner.fetchval("select id from public.jobs where document_id = $1", ready)
    await project.remove(user, (await project.job(deleted))["document_id"])

    said = await told(database, "jobs", "retry", str(good), str(deleted), str(done), "4711", str(good), code=1)
    assert (said["matched"], said["done"], said["held"]) == (5, 1, [])
    assert said["refused"] == [
        {"job_id": deleted, "why": "its file was deleted"},
        {"job_id": done, "why": "it is completed; upload the file again to have it read again"},
        {"job_id": 4711, "why": "it does not exist, or was pruned; upload the file again"},
    ]
    assert (await states(project))[good] == "available"
    again = await run(database, "jobs", "retry", str(good))
    assert again.exit_code == 1
    assert "it is available already" in again.stderr


async def test_a_bulk_retry_counts_first_and_does_nothing_without_a_yes(database: Database, project: Project) -> None:
    user = await project.user()
    jobs = [await discarded(project, user, f"{n}.txt", "no_text") for n in range(3)]
    other = await discarded(project, await project.user(), "x.txt", "pdf_encrypted")
    before = await states(project)

    for answer in ("n\n", "", "\n"):
        result = await run(database, "jobs", "retry", "--code", "no_text", answer=answer)
        assert result.exit_code == 1
        assert "3 jobs of 1 tenant match: 3 discarded with no_text." in result.stderr
        assert "Nothing was done." in result.stderr
        assert await states(project) == before

    result = await run(database, "jobs", "retry", "--code", "no_text", answer="y\n")
    assert (result.exit_code, result.stdout) == (0, "3 of 3 jobs retried.\n")
    assert {job: state for job, state in (await states(project)).items() if state == "discarded"} == {
        other: "discarded"
    }
    act = await project.owner.fetchrow("select * from ingest.audit order by id desc limit 1")
    assert act is not None
    assert (act["login"], act["acted_as"], act["action"], act["affected"]) == (
        "ingest_worker",
        "login",
        "retry_jobs",
        3,
    )
    assert json.loads(act["subject"]) == {"jobs": jobs}

    none = await told(database, "jobs", "retry", "--code", "no_text", "--yes", code=1)
    assert (none["matched"], none["done"]) == (0, 0)


async def test_only_what_was_counted_is_touched_and_the_limit_takes_the_newest(
    database: Database, project: Project
) -> None:
    user = await project.user()
    jobs = await project.enqueue(user, 250)
    said = await told(database, "jobs", "cancel", "--tenant", str(user), "--limit", "240", "--yes")
    assert (said["matched"], said["more"], said["done"]) == (240, True, 240)
    assert sorted(job for job, state in (await states(project)).items() if state == "available") == jobs[:10]
    assert await project.owner.fetchval("select count(*) from ingest.audit") == 3  # a row a batch


async def test_a_running_job_is_cancelled_and_loses_its_lease(database: Database, project: Project) -> None:
    await project.upload(await project.user())
    claim = await project.claim_one()
    result = await run(database, "jobs", "cancel", str(claim["job_id"]))
    assert (result.exit_code, result.stdout) == (0, "1 of 1 job cancelled.\n")
    assert await project.owner.fetchval("select count(*) from ingest.leases") == 0
    again = await run(database, "jobs", "cancel", str(claim["job_id"]))
    assert again.exit_code == 1
    assert "it is cancelled already" in again.stderr


async def test_a_job_that_somebody_holds_is_tried_again_and_then_said(database: Database, project: Project) -> None:
    (job,) = await project.enqueue(await project.user())
    holder = await database.connect("postgres")
    async with holder.transaction():
        await holder.execute("select 1 from public.jobs where id = $1 for update", job)
        held = await told(database, "jobs", "cancel", str(job), code=1)
        assert (held["done"], held["held"]) == (0, [job])
        asked = asyncio.create_task(told(database, "jobs", "cancel", str(job)))
        await project.until("select count(*) >= 8 from ingest.audit")  # seven tries before, and one of these
    assert (await asked)["done"] == 1


async def test_the_queue_is_paused_and_resumed_and_each_is_said_twice_alike(
    database: Database, project: Project
) -> None:
    await project.enqueue(await project.user())
    since = (await told(database, "queue", "pause"))["paused_at"]
    assert (await told(database, "queue", "pause"))["paused_at"] == since
    assert await project.claim() == []
    assert (await told(database, "queue", "status"))["paused_at"] is not None
    assert (await told(database, "queue", "resume"))["was_paused"] is True
    assert (await told(database, "queue", "resume"))["was_paused"] is False
    assert len(await project.claim()) == 1
    rows = await project.owner.fetch("select action, affected from ingest.audit order by id")
    assert [tuple(row) for row in rows] == [
        ("pause_queue", 1), ("pause_queue", 1), ("resume_queue", 1), ("resume_queue", 0),
    ]  # fmt: skip


async def test_the_status_counts_what_waits_sleeps_runs_and_failed(database: Database, project: Project) -> None:
    user = await project.user()
    await discarded(project, user, "a.txt")
    jobs = await project.enqueue(user, 4)
    await project.claim(limit=2)
    await project.owner.execute("update public.jobs set scheduled_at = now() - interval '90 s' where id = $1", jobs[2])
    await project.owner.execute(
        "update public.jobs set scheduled_at = now() + interval '90 s', error_code = 'budget_exhausted' where id = $1",
        jobs[3],
    )
    await project.owner.execute(
        "update ingest.leases set expires_at = now() - interval '1 s' where job_id = $1", jobs[0]
    )
    await project.worker.execute("select ingest.raise_alert('misconfigured', 'embedding_key', 'The key is wrong.')")
    status = await told(database, "queue", "status")
    assert 90 <= status.pop("oldest_seconds") < 120
    (alert,) = status.pop("alerts")
    assert (alert["kind"], alert["subject"], alert["count"]) == ("misconfigured", "embedding_key", 1)
    assert status == {
        "queue": "ingest", "paused_at": None, "waiting": 1, "later": {"budget_exhausted": 1}, "tenants_waiting": 1,
        "running": 2, "running_without_lease": 1, "discarded_today": 1, "completed_last_hour": 0,
    }  # fmt: skip
    lines = (await run(database, "queue", "status")).stdout.splitlines()
    assert "sleeping\t1 budget_exhausted" in lines
    assert "alert misconfigured\tembedding_key, 1 time: The key is wrong." in lines

"""Alerts: one open row for each trouble, however often it is noticed, and none with a secret in it."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from tests.conftest import Database
from tests.database.project import Project

RAISE = "select ingest.raise_alert('misconfigured', $1, $2)"
RESOLVE = "select ingest.resolve_alert('misconfigured', $1)"


async def open_alerts(project: Project) -> list[tuple[str, str, int]]:
    rows = await project.owner.fetch(
        "select subject, message, count from ingest.alerts where resolved_at is null order by subject"
    )
    return [tuple(row) for row in rows]


async def test_a_trouble_that_is_noticed_again_is_counted_and_keeps_its_newest_message(project: Project) -> None:
    assert await project.worker.fetchval(RAISE, "key", "First.")
    assert not await project.worker.fetchval(RAISE, "key", "Second.")
    assert await project.worker.fetchval(RAISE, "model", "Other.")
    assert await open_alerts(project) == [("key", "Second.", 2), ("model", "Other.", 1)]
    assert await project.owner.fetchval("select bool_and(last_at > raised_at) from ingest.alerts where count > 1")


async def test_a_resolved_alert_is_raised_as_a_new_one(project: Project) -> None:
    await project.worker.fetchval(RAISE, "key", "First.")
    assert await project.worker.fetchval(RESOLVE, "key")
    assert not await project.worker.fetchval(RESOLVE, "key")
    assert await open_alerts(project) == []
    assert await project.worker.fetchval(RAISE, "key", "Again.")
    assert await open_alerts(project) == [("key", "Again.", 1)]
    assert await project.owner.fetchval("select count(*) from ingest.alerts") == 2


async def test_workers_that_notice_the_same_at_once_make_one_alert(project: Project, database: Database) -> None:
    workers = [await database.connect("ingest_worker") for _ in range(8)]
    await asyncio.gather(*(worker.fetchval(RAISE, "key", "Wrong.") for worker in workers for _ in range(1)))
    assert await open_alerts(project) == [("key", "Wrong.", 8)]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("The key sb_secret_N7UND0UgjKTVK-Uodkm0Hg is refused.", "The key … is refused."),
        ("Incorrect API key provided: sk-proj-abc***wxyz.", "Incorrect API key provided: …"),
        ("llx-9f8e7d6c5b4a is no key", "… is no key"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoieCJ9.c2ln was sent", "token … was sent"),
        ("postgresql://worker:hunter2@db.example.org:5432/x", "postgresql://worker:…@db.example.org:5432/x"),
        ("GET https://x.example/a.pdf?token=abc&x=1 gave 403", "GET https://x.example/a.pdf?… gave 403"),
        ("An operator must correct SUPABASE_SECRET_KEY.", "An operator must correct SUPABASE_SECRET_KEY."),
        ("The task risk-averse: is it right?", "The task risk-averse: is it right?"),
    ],
)
async def test_no_secret_is_kept_in_a_message(project: Project, text: str, kept: str) -> None:
    await project.worker.fetchval(RAISE, "key", text)
    assert [message for _, message, _ in await open_alerts(project)] == [kept]


async def test_a_message_and_a_subject_of_any_length_are_kept_short(project: Project) -> None:
    await project.worker.fetchval(RAISE, "s" * 5000, "m" * 5000)
    ((subject, message, _),) = await open_alerts(project)
    assert (len(subject), len(message)) == (200, 1000)
    assert await project.worker.fetchval(RESOLVE, "s" * 5000)


async def complete_one(project: Project) -> None:
    """Publish a file: something works."""
    await project.ready(await project.user(), f"{uuid4()}.txt", "text")


async def test_a_misconfiguration_that_nobody_reports_any_more_is_resolved_once_files_complete_again(
    project: Project,
) -> None:
    await complete_one(project)
    await project.owner.execute("update public.job_events set at = at - interval '2 hours'")
    await project.worker.fetchval(RAISE, "old", "x")
    await project.worker.execute("select ingest.raise_alert('reconcile_refused', 'documents', 'x')")
    await project.owner.execute("update ingest.alerts set last_at = now() - interval '16 minutes'")
    assert await project.worker.fetchval("select ingest.tidy_alerts()") == 0  # nothing completed since

    await complete_one(project)
    await project.worker.fetchval(RAISE, "new", "x")
    assert await project.worker.fetchval("select ingest.tidy_alerts()") == 1
    assert [subject for subject, _, _ in await open_alerts(project)] == ["documents", "new"]


async def test_resolved_alerts_are_forgotten_after_a_quarter_of_a_year_and_open_ones_never(project: Project) -> None:
    for subject in ("old", "young", "open"):
        await project.worker.fetchval(RAISE, subject, "x")
    await project.owner.execute(
        "update ingest.alerts set raised_at = now() - interval '1 year', last_at = now() - interval '1 year',"
        " resolved_at = case subject when 'old' then now() - interval '91 days' when 'young' then now() end"
    )
    await project.worker.fetchval("select ingest.tidy_alerts()")
    rows = await project.owner.fetch("select subject from ingest.alerts order by subject")
    assert [row["subject"] for row in rows] == ["open", "young"]

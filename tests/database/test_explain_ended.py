"""`sluice jobs explain` on jobs that have ended: each cause from a situation that the queue's functions made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.database.people import as_operator, call
from tests.database.report import check_schema
from tests.database.situations import Situations, said
from worker.errors import Rejected, Superseded, Throttled, Transient, Unavailable
from worker.model import Claim
from worker.operate.words import moment

BUSY = Transient("database_busy", "The database was busy.")


async def test_a_file_over_quota_says_which_limit_and_comes_back_by_itself(world: Situations) -> None:
    tenant = await world.project.user()
    job = await world.job("a.txt", tenant)
    await world.project.worker.execute("select ingest.set_quota($1, null, 0, null, null)", tenant)

    async def beginning(claim: Claim, _path: Path, _settling: Callable[[bool], None]) -> None:
        await world.db.fetchrow("begin_fetch", claim.job_id, claim.number)

    await world.attempt(job, beginning)
    report = await world.explain(job)
    assert said(report) == ("over_quota", "our code", True)
    assert report["cause"]["evidence"] == ["files: 1 of 0"]
    assert report["remedy"]["command"] == f"sluice quota set {tenant} --files N"


async def test_pages_of_a_month_come_back_with_the_next_month(world: Situations) -> None:
    tenant = await world.project.user()
    job = await world.job("a.txt", tenant)
    await world.project.worker.execute("select ingest.set_quota($1, null, null, 0, null)", tenant)

    async def beginning(claim: Claim, _path: Path, _settling: Callable[[bool], None]) -> None:
        await world.db.fetchrow("begin_fetch", claim.job_id, claim.number)

    await world.attempt(job, beginning)
    report = await world.explain(job)
    assert said(report) == ("over_quota", "our code", True)
    assert moment(report["heals"]["at"]).day == 1
    assert report["remedy"]["command"].endswith("--pages-month N")


async def test_a_file_that_was_deleted_meanwhile_has_nothing_to_heal(world: Situations) -> None:
    user = await world.project.user()
    job = await world.job("a.txt", user)
    await world.claim(job)
    await world.project.remove(user, (await world.project.job(job))["document_id"])
    report = await world.explain(job)
    assert said(report) == ("object_deleted", "storage", None)
    assert report["cause"]["evidence"] == ["the object is not in Storage", "document: gone"]
    assert report["verdict"] == "cancelled"


async def test_an_encrypted_file_is_the_owners_to_mend(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Rejected("pdf_encrypted", "The PDF is protected by a password."))
    report = await world.explain(job)
    assert said(report) == ("encrypted", "parser", False)
    assert report["cause"]["says"] == "The PDF is protected by a password."
    assert "owner" in report["remedy"]["says"]


async def test_a_text_that_the_provider_refuses_is_told_from_a_file_that_cannot_be_read(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Rejected("embedding_refused", "The service refuses a part.", detail="HTTP 400 bad"))
    report = await world.explain(job)
    assert said(report) == ("provider_refuses_text", "embedder", False)
    assert "raised: HTTP 400" in report["cause"]["evidence"]


async def test_a_poison_document_names_the_times_at_which_workers_were_lost(world: Situations) -> None:
    job = await world.job()
    for _ in range(3):
        await world.claim(job)
        await world.lose(job)
        await world.rescue()
    report = await world.explain(job)
    assert said(report) == ("poison", "our code", False)
    assert report["cause"]["says"].startswith(
        "Workers died or went silent 3 times while they held it, last in stage fetch"
    )
    assert len(report["cause"]["evidence"]) == 3
    assert report["remedy"]["command"] == f"sluice jobs retry {job}"


async def test_the_first_cause_is_named_and_not_the_last_symptom(world: Situations) -> None:
    job = await world.job()
    for _ in range(4):
        await world.attempt(job, Transient("embedding_failed", "The embedding service failed."))
    await world.attempt(job, BUSY)
    report = await world.explain(job)
    assert said(report) == ("attempts_used_up", "embedder", False)
    assert report["job"]["error_code"] == "database_busy"
    assert report["cause"]["says"] == (
        "All 5 attempts failed, first with embedding_failed. The last symptom was database_busy."
    )


async def test_what_was_before_a_retry_by_hand_is_history(world: Situations) -> None:
    job = await world.job()
    for _ in range(5):
        await world.attempt(job, Transient("embedding_failed", "The embedding service failed."))
    await world.project.worker.execute("select ingest.retry_by_hand(array[$1::bigint])", job)
    await world.attempt(job, BUSY)
    report = await world.explain(job)
    assert said(report) == ("backoff", "database", True)
    assert "the first one with database_busy" in report["cause"]["says"]


async def test_a_day_of_waiting_in_vain_names_what_it_waited_for(world: Situations) -> None:
    job = await world.job()
    down = Unavailable("storage_unreachable", "Storage did not answer.", detail="HTTP 503: 503 ")
    await world.attempt(job, down)
    await world.project.admin.execute("update public.jobs set snoozing_since = now() - interval '25 hours'")
    await world.attempt(job, down)
    report = await world.explain(job)
    assert said(report) == ("gave_up_waiting", "storage", False)
    assert report["cause"]["says"] == "It waited a day in vain: storage_unreachable."


async def test_a_replaced_file_points_to_its_newer_job(world: Situations) -> None:
    job = await world.job()
    await world.project.overwrite((await world.project.job(job))["document_id"])
    newer = await world.project.owner.fetchval("select max(id) from public.jobs")
    report = await world.explain(job)
    assert said(report) == ("superseded", "storage", None)
    assert report["remedy"]["command"] == f"sluice jobs explain {newer}"


async def test_a_cancelled_job_says_who_did_it(world: Situations) -> None:
    one, other = await world.job(), await world.job()
    await world.project.worker.execute("select ingest.cancel_by_hand(array[$1::bigint])", one)
    user = await world.project.user()
    await call(world.project, as_operator(world.project.admin, user), "select public.cancel_job($1)", other)
    report = await world.explain(one)
    assert said(report) == ("cancelled", "our code", False)
    assert report["cause"]["says"] == "It was cancelled by hand: login ingest_worker."
    assert report["remedy"]["command"] == f"sluice jobs retry {one}"
    assert (await world.explain(other))["cause"]["says"] == f"It was cancelled by hand: operator {user}."


async def test_a_published_file_says_where_its_time_went(world: Situations) -> None:
    user = await world.project.user()
    job = await world.job("a.txt", user)
    await world.attempt(job, Throttled("provider_rate_limited", "Wait.", retry_after=600, detail="openai: 600.0 s"))
    await world.past(job, 600)
    await world.project.ingest((await world.project.claim())[0], ["text"])
    report = await world.explain(job)
    assert said(report) == ("published", "embedder", None)
    assert report["longest_wait"]["why"] == "waiting for provider_rate_limited"
    assert 599 <= report["longest_wait"]["seconds"] <= 615
    assert "Most of it went to waiting for provider_rate_limited: 10 min." in report["cause"]["says"]
    assert report["verdict"] == "done"


async def test_a_published_file_that_waited_for_its_turn_says_so(world: Situations) -> None:
    job = await world.job()
    await world.past(job, 90)
    await world.project.ingest((await world.project.claim())[0], ["text"])
    report = await world.explain(job)
    assert said(report) == ("published", "our code", None)
    assert report["longest_wait"]["why"] == "waiting for its turn"
    assert 89 <= report["longest_wait"]["seconds"] <= 100


async def test_a_job_that_was_published_before_its_file_was_replaced_is_explained_for_itself(world: Situations) -> None:
    document = await world.project.ready(await world.project.user(), "a.txt", "text")
    job = await world.project.owner.fetchval("select id from public.jobs")
    await world.project.overwrite(document)
    assert said(await world.explain(job))[0] == "published"


async def test_the_time_until_somebody_retried_it_is_nobodys_wait(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Rejected("no_text", "The file holds no text."))
    await world.past(job, 500)
    await world.project.worker.execute("select ingest.retry_by_hand(array[$1::bigint])", job)
    await world.project.ingest((await world.project.claim())[0], ["text"])
    longest = (await world.explain(job))["longest_wait"]
    assert (longest["layer"], longest["why"]) == ("our code", "being ended until it was retried")
    assert 499 <= longest["seconds"] <= 515


async def test_the_spans_of_a_job_add_up_to_its_life(world: Situations) -> None:
    job = await world.job()
    await world.past(job, 30)
    await world.attempt(job, BUSY)
    await world.past(job, 60)
    await world.project.ingest((await world.project.claim())[0], ["text"])
    report = await world.explain(job)
    life = moment(report["job"]["finalized_at"]) - moment(report["job"]["created_at"])
    assert sum(row["seconds"] for row in report["layers"]) == pytest.approx(life.total_seconds(), abs=1)


async def test_a_document_whose_jobs_were_pruned_is_explained_as_well(world: Situations) -> None:
    document = await world.project.ready(await world.project.user(), "a.txt", "text")
    await world.project.owner.execute("delete from public.jobs")
    assert said(await world.explain(None, document)) == ("history_pruned", "our code", None)


async def test_a_document_that_waits_without_a_job_is_mended_by_reconcile(world: Situations) -> None:
    job = await world.job()
    document = (await world.project.job(job))["document_id"]
    await world.project.owner.execute("delete from public.jobs")
    report = await world.explain(None, document)
    assert said(report) == ("no_job", "our code", True)
    assert report["remedy"]["command"] == "sluice reconcile"


async def test_an_upload_of_which_nothing_came_says_why(world: Situations) -> None:
    user = await world.project.user()
    await world.project.admin.execute(
        "insert into storage.buckets (id, name) values ('photos', 'photos') on conflict do nothing"
    )
    other = await world.project.upload(user, "a.txt", bucket="photos")
    report = await world.explain(None, other)
    assert said(report) == ("bucket_not_watched", "our code", False)
    assert report["remedy"]["command"] == "sluice backfill photos --watch"
    check_schema(report)

    nobodys = await world.project.upload("public", "a.txt")
    assert said(await world.explain(None, nobodys)) == ("no_tenant_folder", "storage", False)

    await world.project.admin.execute("alter table storage.objects disable trigger sluice_object_changed")
    missed = await world.project.upload(user, "b.txt")
    report = await world.explain(None, missed)
    assert said(report) == ("upload_missed", "database", True)
    assert report["verdict"] == "no document"
    check_schema(report)


async def test_a_file_that_cannot_be_read_is_the_owners_as_well(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Rejected("no_text", "The file holds no text."))
    assert said(await world.explain(job)) == ("unreadable_file", "parser", False)


async def test_an_end_that_no_rule_knows_is_told_as_it_is(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Superseded("superseded", "Replaced."))
    assert said(await world.explain(job)) == ("ended", "storage", None)

"""`sluice jobs explain` on jobs that wait or run: each cause from a situation that the queue's functions made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from tests.database.people import as_operator, call
from tests.database.project import digest
from tests.database.situations import Situations, claim_of, said
from worker.errors import Misconfigured, Transient, Unavailable, Waiting
from worker.model import Claim
from worker.operate.explain.facts import Facts
from worker.operate.explain.report import explain
from worker.pipeline.fetch import ObjectStore, fetch
from worker.pipeline.ledger import Ledger
from worker.pipeline.limits import Limits

KEY = Misconfigured("embedding_key", "The embedding service refused our key.", detail="HTTP 401 invalid_api_key")


async def test_a_job_behind_its_tenants_cap_names_the_jobs_that_hold_it(world: Situations) -> None:
    tenant = await world.project.user()
    first, second = await world.job("a.txt", tenant), await world.job("b.txt", tenant)
    await world.project.claim(cap=1)
    report = await world.explain(second, cap=1)
    assert said(report) == ("tenant_cap", "our code", True)
    assert report["cause"]["evidence"][0] == f"job {first} in stage fetch"
    assert said(await world.explain(second, cap=2))[0] == "due"  # by the cap of whoever asks

    await world.project.worker.execute("select ingest.set_quota($1, null, null, null, 1)", tenant)
    report = await world.explain(second, cap=99)
    assert said(report) == ("tenant_cap", "our code", True)
    assert "raise the quota" in report["remedy"]["says"]


async def test_a_cap_that_a_dead_worker_fills_points_to_its_job(world: Situations) -> None:
    tenant = await world.project.user()
    first, second = await world.job("a.txt", tenant), await world.job("b.txt", tenant)
    await world.project.claim(cap=1)
    await world.lose(first)
    report = await world.explain(second, cap=1)
    assert report["cause"]["rule"] == "tenant_cap"
    assert report["cause"]["evidence"][0].endswith("its lease ran out")
    assert report["remedy"]["command"] == f"sluice jobs explain {first}"


async def test_a_paused_queue_says_who_paused_it_and_does_not_heal(world: Situations) -> None:
    job = await world.job()
    await world.project.worker.execute("select ingest.pause_by_hand()")
    report = await world.explain(job)
    assert said(report) == ("queue_paused", "our code", False)
    assert report["cause"]["evidence"][0].startswith("by login ingest_worker at ")
    assert report["remedy"]["command"] == "sluice queue resume"

    await world.project.worker.execute("select ingest.resume_by_hand()")
    assert said(await world.explain(job)) == ("due", "our code", True)


async def test_a_job_that_nobody_takes_says_that_no_worker_runs(world: Situations) -> None:
    job = await world.job()
    await world.past(job, 60)
    await world.workers_die()
    report = await world.explain(job)
    assert said(report) == ("no_worker", "our code", False)
    assert report["remedy"]["command"] == "sluice worker"


async def test_heartbeats_say_more_than_claims_and_leases(world: Situations) -> None:
    idle, job = await world.job(), await world.job()
    await world.claim(idle)  # a lease lives, though its worker may not
    told = json.loads(await world.project.worker.fetchval("select ingest.explain_job($1)", job))
    for fresh, expected in ((0, ("no_worker", "our code", False)), (2, ("due", "our code", True))):
        told["workers"] |= {"heartbeats": True, "fresh": fresh, "ways": {"polling": 2}, "last_seen_at": told["now"]}
        told["job"] |= {"state": "available", "error_code": None}
        told["tenant"] |= {"jobs_ahead": 0, "tenants_ahead": 0, "running": 0}
        report = explain(Facts(told, tenant_cap=4))
        assert said(report) == expected
    assert report["cause"]["evidence"][1] == "2 workers woken by polling"


async def test_a_rate_limit_heals_when_the_provider_lets_us_again(world: Situations) -> None:
    job = await world.job()

    async def limited(_claim: Claim, _path: Path, _settling: Callable[[bool], None]) -> None:
        raise await Limits(world.db, None).blocked("openai", 300)  # type: ignore[arg-type]

    await world.attempt(job, limited)
    report = await world.explain(job)
    assert said(report) == ("rate_limit", "embedder", True)
    blocked = await world.project.owner.fetchval(
        "select blocked_until from ingest.rate_limits where provider = 'openai'"
    )
    assert report["heals"]["at"] == max(blocked.isoformat(), await world.until(job))
    assert report["cause"]["evidence"][0].startswith("openai/default: blocked until ")
    assert report["job"]["attempt"] == 0


async def test_a_rate_limit_of_the_parsing_service_is_the_parsers(world: Situations) -> None:
    job = await world.job()

    async def limited(_claim: Claim, _path: Path, _settling: Callable[[bool], None]) -> None:
        await Limits(world.db, None).blocked("openai", 300)  # type: ignore[arg-type]
        raise await Limits(world.db, None).blocked("llama-parse", 60)  # type: ignore[arg-type]

    await world.attempt(job, limited)
    report = await world.explain(job)
    assert said(report) == ("rate_limit", "parser", True)
    assert all("openai" not in line for line in report["cause"]["evidence"])


async def test_a_budget_that_is_used_up_heals_at_midnight_or_when_it_is_raised(world: Situations) -> None:
    tenant = await world.project.user()
    job = await world.job("a.txt", tenant)
    await world.project.worker.execute("select ingest.set_budget('tenant', $1, 0)", tenant)

    async def spending(claim: Claim, _path: Path, _settling: Callable[[bool], None]) -> None:
        await Ledger(world.db).allow(claim.tenant_id)

    await world.attempt(job, spending)
    report = await world.explain(job)
    assert said(report) == ("budget", "our code", True)
    assert report["heals"]["at"] == await world.until(job)
    assert report["cause"]["evidence"][0] == "tenant: 0 of 0 USD"
    assert report["cause"]["evidence"][1].startswith(f"alert budget_exhausted/{tenant} since ")
    assert report["remedy"]["command"] == f"sluice budget set USD --tenant {tenant}"


async def test_the_projects_budget_is_told_from_the_tenants(world: Situations) -> None:
    job = await world.job()
    await world.project.worker.execute("select ingest.set_budget('project', null, 0)")

    async def spending(claim: Claim, _path: Path, _settling: Callable[[bool], None]) -> None:
        await Ledger(world.db).allow(claim.tenant_id)

    await world.attempt(job, spending)
    report = await world.explain(job)
    assert report["cause"]["says"] == "The daily budget of the project is used up."
    assert report["remedy"]["command"] == "sluice budget set USD --project"


async def test_a_refused_key_is_a_matter_of_auth_and_waits_for_a_person(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, KEY)
    report = await world.explain(job)
    assert said(report) == ("wrong_key", "auth", False)
    assert "OPENAI_API_KEY" in report["remedy"]["says"]
    assert report["cause"]["evidence"][:2] == ["code embedding_key", "raised: HTTP 401"]
    assert report["cause"]["evidence"][2].startswith("alert misconfigured/embedding_key since ")
    assert report["heals"]["at"] == await world.until(job)  # when it is tried next
    assert [row["verdict"] for row in report["layers"] if row["layer"] == "auth"] == ["cause"]


async def test_a_wrong_dimension_names_what_is_registered(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Misconfigured("embedding_dimension", "The model gave vectors of another size."))
    report = await world.explain(job)
    assert said(report) == ("wrong_model", "embedder", False)
    assert "registered: local/all-MiniLM-L6-v2, 384 dimensions" in report["cause"]["evidence"]


async def test_a_worker_that_may_not_read_files_safely_waits_for_a_person(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Misconfigured("sandbox_unavailable", "This worker cannot read files safely."))
    assert said(await world.explain(job)) == ("misconfigured", "parser", False)


async def test_a_job_for_later_says_when(world: Situations) -> None:
    job = await world.job()
    await world.project.owner.execute("update public.jobs set scheduled_at = now() + interval '1 h'")
    report = await world.explain(job)
    assert said(report) == ("scheduled", "our code", True)
    assert report["heals"]["at"] == await world.until(job)


async def test_what_holds_a_job_besides_its_cause_is_said_and_keeps_it_from_healing(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Unavailable("storage_unreachable", "Storage did not answer.", detail="HTTP 503: 503 "))
    await world.project.worker.execute("select ingest.pause_by_hand()")
    report = await world.explain(job)
    assert said(report) == ("service_down", "storage", False)
    assert [other["rule"] for other in report["also"]] == ["queue_paused"]
    assert report["heals"]["how"] == "It waits until somebody resumes the queue."


async def test_storage_that_nobody_reaches_is_a_matter_of_the_network(world: Situations) -> None:
    job = await world.job()
    store = ObjectStore("http://127.0.0.1:1", "sb_secret_x")

    async def fetching(claim: Claim, path: Path, _settling: Callable[[bool], None]) -> None:
        await fetch(world.db, store, claim, path, max_bytes=100)

    await world.attempt(job, fetching)
    await store.close()
    report = await world.explain(job)
    assert said(report) == ("service_down", "network", True)
    assert re.fullmatch(r"raised: \w*Connect\w*Error", report["cause"]["evidence"][1])
    assert report["heals"]["at"] == await world.until(job)


async def test_a_file_that_a_service_reads_waits_for_the_service(world: Situations) -> None:
    job = await world.job()
    claim = await world.claim(job)
    parse = await world.project.worker.fetchval(
        "select parse_id from ingest.begin_parse($1, $2, $3, 5, 'text/plain', 'llama-parse', '1', '{}')",
        job, claim.number, digest("x"),
    )  # fmt: skip
    await world.project.worker.execute(
        "select ingest.note_submitted($1, $2, $3, 'ref', interval '5 s')", job, claim.number, parse
    )
    await world.run(claim, Waiting("parse_remote", "It is being read.", retry_after=3600))
    report = await world.explain(job)
    assert said(report) == ("parse_at_service", "parser", True)
    polled = await world.project.owner.fetchval("select next_poll_at from ingest.parses")
    assert report["heals"]["at"] == polled.isoformat()


async def test_bytes_that_another_job_reads_point_to_that_job(world: Situations) -> None:
    tenant = await world.project.user()
    first, second = await world.job("a.txt", tenant), await world.job("b.txt", tenant)
    claims = {row["job_id"]: row for row in await world.project.claim()}
    assert (await world.project.begin_parse(claims[first], "same"))["outcome"] == "parse"
    assert (await world.project.begin_parse(claims[second], "same"))["outcome"] == "taken"
    await world.run(claim_of(claims[second]), Waiting("parse_in_progress", "It is being read.", retry_after=15))
    report = await world.explain(second)
    assert said(report) == ("parse_by_another_job", "parser", True)
    assert report["remedy"] == {"says": "Nothing.", "command": f"sluice jobs explain {first}"}

    await world.run(claim_of(claims[first]), KEY)
    report = await world.explain(second)
    assert "it is available, embedding_key" in report["cause"]["says"]
    assert report["remedy"]["says"] == "See what keeps the other job."


async def test_a_failed_attempt_is_tried_again_at_its_time(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Transient("embedding_failed", "The embedding service failed."))
    report = await world.explain(job)
    assert said(report) == ("backoff", "embedder", True)
    assert report["cause"]["says"].startswith("Attempt 1 of 5 failed with embedding_failed")
    assert report["heals"]["at"] == await world.until(job)


async def test_what_the_job_has_overcome_is_no_cause_any_more(world: Situations) -> None:
    job = await world.job()
    await world.attempt(job, Unavailable("storage_unreachable", "Storage did not answer.", detail="HTTP 500: 500 "))

    async def crashing(claim: Claim, _path: Path, _settling: Callable[[bool], None]) -> None:
        left = '[{"stage": "fetch", "seconds": 0.5, "detail": {"bytes": 5}}]'
        await world.db.fetchval("enter_stage", claim.job_id, claim.number, "parse", 0.1, left)
        raise Transient("parser_crashed", "The parser failed.")

    await world.attempt(job, crashing)
    report = await world.explain(job)
    assert said(report) == ("backoff", "parser", True)
    assert "the first one with parser_crashed" in report["cause"]["says"]
    assert {row["layer"]: row["verdict"] for row in report["layers"]}["storage"] == "ok"


async def test_a_lease_of_a_dead_worker_is_rescued_by_another_and_by_nobody_without(world: Situations) -> None:
    job = await world.job()
    await world.claim(job)
    await world.lose(job)
    report = await world.explain(job)
    assert said(report) == ("stale_lease", "our code", True)
    assert report["cause"]["evidence"][0].startswith("worker ")

    await world.workers_die()
    report = await world.explain(job)
    assert said(report) == ("stale_lease", "our code", False)
    assert report["remedy"]["command"] == "sluice worker"


async def test_a_rescued_job_says_that_its_worker_died(world: Situations) -> None:
    job = await world.job()
    await world.claim(job)
    await world.lose(job)
    await world.rescue()
    report = await world.explain(job)
    assert said(report) == ("rescued", "our code", True)
    assert "1 time without progress" in report["cause"]["says"]


async def test_a_running_job_says_in_which_stage_and_by_whom(world: Situations) -> None:
    job = await world.job()
    claim = await world.claim(job)
    report = await world.explain(job)
    assert said(report) == ("running", "storage", True)
    assert report["verdict"] == "running"

    await world.project.worker.execute("select ingest.mark_begun($1, $2, false)", job, claim.number)
    assert said(await world.explain(job)) == ("waits_to_run_alone", "our code", True)


async def test_a_newer_generation_waits_for_the_older_one_that_still_runs(world: Situations) -> None:
    document = await world.project.upload(await world.project.user())
    (running,) = await world.project.claim()
    await world.project.overwrite(document)
    newer = await world.project.owner.fetchval("select max(id) from public.jobs")
    report = await world.explain(newer)
    assert said(report) == ("document_busy", "our code", True)
    assert report["remedy"]["command"] == f"sluice jobs explain {running['job_id']}"


async def test_a_job_in_line_counts_who_is_ahead(world: Situations) -> None:
    tenant = await world.project.user()
    jobs = [await world.job(f"{n}.txt", tenant) for n in range(3)]
    await world.job("other.txt")
    report = await world.explain(jobs[-1])
    assert said(report) == ("behind_others", "our code", True)
    assert report["cause"]["says"].startswith("It waits its turn behind 2 jobs of its tenant and ")


async def test_pausing_through_the_api_names_the_operator(world: Situations) -> None:
    job = await world.job()
    user = await world.project.user()
    await call(world.project, as_operator(world.project.admin, user), "select public.pause_queue()")
    report = await world.explain(job)
    assert report["cause"]["evidence"][0].startswith(f"by operator {user} at ")

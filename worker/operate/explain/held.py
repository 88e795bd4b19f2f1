"""Rules for jobs that run, or wait to be run."""

from __future__ import annotations

from datetime import timedelta

from worker.operate.explain.cause import Cause, Rule, of_alert, of_failures, of_fault, since_first
from worker.operate.explain.codes import Layer, code_of
from worker.operate.explain.facts import Facts
from worker.operate.explain.timeline import STAGE_LAYERS
from worker.operate.words import clock, counted, moment, span

_OVERDUE_SECONDS = 30.0
_RESCUE = timedelta(seconds=15)
"""The longest between two sweeps of the rescue."""


def _stale_lease(f: Facts) -> Cause | None:
    if f.state != "running":
        return None
    assert f.job is not None
    lease = f["lease"]
    if lease is not None and not lease["expired"]:
        return None
    ran_out = moment(lease["expires_at"]) if lease else None
    seen = f["workers"].get("seen", {}).get(lease["worker_id"]) if lease else None
    evidence = [f"worker {lease['worker_id']}, lease until {clock(ran_out)}" if lease else "no lease at all"]
    evidence += [f"its last heartbeat was at {clock(moment(seen))}"] if seen else []
    alive = f.alive
    return Cause(
        "stale_lease", "our code", f"The worker that held it in stage {f.job['stage']} died or went silent.",
        "Nothing: another worker takes the job back." if alive else "Start a worker: only workers rescue.",
        heals=bool(alive), at=f.now + _RESCUE if alive else None,
        how="A worker rescues it with its next sweep." if alive else "No worker gives a sign of life.",
        command=None if alive else "sluice worker", since=ran_out, evidence=evidence,
    )  # fmt: skip


def _running(f: Facts) -> Cause | None:
    if f.state != "running":
        return None
    assert f.job is not None
    lease, stage = f["lease"], f.job["stage"]
    alone = stage is None
    layer: Layer = STAGE_LAYERS.get(stage or "", "our code")
    return Cause(
        "waits_to_run_alone" if alone else "running", layer,
        "Its worker lets its other jobs end first: this one was rescued, and may be what kills workers." if alone
        else f"A worker is at it, in stage {stage}.",
        "Nothing.", heals=True, at=None,
        how="It begins when the worker's other jobs have ended." if alone else "It goes on by itself.",
        command=f"sluice jobs watch {f.id}", since=moment(f.job["started_at"]),
        evidence=[f"worker {lease['worker_id']}, lease until {clock(moment(lease['expires_at']))}"],
    )  # fmt: skip


def _parse_remote(f: Facts) -> Cause | None:
    parse = f["parse"]
    if not f.asleep or f.code != "parse_remote" or not parse or parse["state"] != "waiting":
        return None
    return Cause(
        "parse_at_service", "parser", f"{parse['parser']} is reading the file.",
        "Nothing: the workers ask for it, and give it up after SLUICE_PARSE_HOURS.", heals=True,
        at=moment(parse["next_poll_at"]) if parse["next_poll_at"] else None,
        how="It goes on when the service has finished; that is the next time it is asked.",
        since=moment(parse["submitted_at"]) if parse["submitted_at"] else None,
        evidence=[f"parse {parse['id']}, sent again {counted(parse['resubmits'], 'time')}"],
    )  # fmt: skip


def _parse_elsewhere(f: Facts) -> Cause | None:
    parse = f["parse"]
    if not f.asleep or f.code != "parse_in_progress" or not parse or parse["own"]:
        return None
    other = parse["submitter"] or {}
    what = (
        f"it is {other['state']}" + (f", {other['error_code']}" if other.get("error_code") else "")
        if other
        else "it is gone"
    )
    stuck = bool(other) and (other["state"] != "running" or other["expired"] is not False)
    return Cause(
        "parse_by_another_job", "parser",
        f"Job {parse['submitted_job']} reads the same bytes for another document: {what}.",
        "See what keeps the other job." if stuck else "Nothing.", heals=True, at=f.due,
        how="It goes on when the other has read them, and takes the work over when the other does not live.",
        command=f"sluice jobs explain {parse['submitted_job']}" if other else None,
        since=moment(parse["created_at"]), evidence=[f"parse {parse['id']} is {parse['state']}"],
    )  # fmt: skip


def _budget(f: Facts) -> Cause | None:
    if not f.asleep or f.code != "budget_exhausted":
        return None
    assert f.job is not None
    budget, tenant = f["budget"], f.job["tenant_id"]
    alert = f.alert("budget_exhausted", "project", tenant)
    whole = bool(alert and alert["subject"] == "project")
    whose = "project" if whole else "tenant"
    return Cause(
        "budget", "our code", f"The daily budget of the {whose} is used up.",
        "Nothing, or raise the budget: what waits goes on at once.", heals=True, at=f.due,
        how="The next day's budget begins at midnight UTC.",
        command="sluice budget set USD --project" if whole else f"sluice budget set USD --tenant {tenant}",
        since=moment(alert["raised_at"]) if alert else None,
        evidence=[f"{whose}: {budget[f'{whose}_spent']} of {budget[f'{whose}_usd']} USD", *of_alert(alert)],
    )  # fmt: skip


def _misconfigured(f: Facts) -> Cause | None:
    if not f.asleep or f.kind != "misconfigured":
        return None
    assert f.job is not None
    assert f.code is not None
    known, alert, model = code_of(f.code), f.alert("misconfigured", f.code), f["model"]
    evidence = [f"code {f.code}", *of_fault(f), *of_alert(alert)]
    if known.layer == "embedder" and model:
        evidence.append(f"registered: {model['provider']}/{model['name']}, {model['dimensions']} dimensions")
    rule = "wrong_key" if known.layer == "auth" else "wrong_model" if known.layer == "embedder" else "misconfigured"
    return Cause(
        rule, known.layer, f"{f.job['error_message'] or f.code}", known.remedy, heals=False, at=f.due,
        how="It is tried every five minutes and goes on by itself once that is corrected.",
        since=moment(alert["raised_at"]) if alert else since_first(f), evidence=evidence,
    )  # fmt: skip


def _rate_limit(f: Facts) -> Cause | None:
    if not f.asleep or f.code != "provider_rate_limited":
        return None
    limits = [limit for limit in f["rate_limits"] if f.provider in (None, limit["provider"])]
    blocked = [moment(limit["blocked_until"]) for limit in limits if limit["blocked"]]
    evidence = []
    for limit in limits:
        often = (
            f"requests {limit['requests_per_minute'] or 'any'}, tokens {limit['tokens_per_minute'] or 'any'} a minute"
        )
        said = f"blocked until {clock(moment(limit['blocked_until']))}" if limit["blocked"] else often
        evidence.append(f"{limit['provider']}/{limit['key_name']}: {said}")
    return Cause(
        "rate_limit", f.layer(f.code), f"{f.provider or 'A provider'} lets us send no more for now.",
        "Nothing; if it stays so, ask the provider for a higher limit, or set SLUICE_EMBED_…_PER_MINUTE below it.",
        heals=True, at=max([f.due, *blocked]), how="It goes on by itself when the provider's time is over.",
        since=since_first(f), evidence=evidence,
    )  # fmt: skip


def _unavailable(f: Facts) -> Cause | None:
    if not f.asleep or f.kind != "unavailable":
        return None
    layer = f.layer(f.code)
    service = {"storage_unreachable": "Storage", "embedding_unavailable": "The embedding service"}.get(
        f.code or "", "The parsing service"
    )
    return Cause(
        "service_down", layer, f"{service} does not answer" + (": nobody was reached." if layer == "network" else "."),
        "See the service's status page, and from the worker's machine whether its address answers: sluice doctor.",
        heals=True, at=f.due, how="Asked again with growing pauses, 15 minutes at most, for a day.",
        since=since_first(f), evidence=[f"code {f.code}", *of_fault(f), f"{counted(len(f.failures), 'time')} so far"],
    )  # fmt: skip


def _backoff(f: Facts) -> Cause | None:
    if not f.asleep or not f.failures or f.kind not in ("transient", None):
        return None
    assert f.job is not None
    first = f.failures[0]
    return Cause(
        "backoff", first.layer,
        f"Attempt {f.job['attempt']} of {f.job['max_attempts']} failed with {f.code}, the first one with {first.code}.",
        "Nothing yet; it is given up after the last attempt.", heals=True, at=f.due,
        how="It is tried again with growing pauses.", command=f"sluice jobs watch {f.id}", since=first.at,
        evidence=[*of_failures(f), *of_fault(f)],
    )  # fmt: skip


def _asleep(f: Facts) -> Cause | None:
    if not f.asleep:
        return None
    return Cause(
        "scheduled", f.layer(f.code) if f.code else "our code", f"It waits until its time, with {f.code or 'no code'}.",
        "Nothing.", heals=True, at=f.due, how="It is due then.", evidence=of_fault(f),
    )  # fmt: skip


def _paused(f: Facts) -> Cause | None:
    queue = f["queue"]
    if f.state != "available" or not queue or not queue["paused_at"]:
        return None
    by = queue["by"]
    return Cause(
        "queue_paused", "our code", "The queue is paused: no job is given out.", "Resume it when the reason is gone.",
        how="It waits until somebody resumes the queue.", command="sluice queue resume",
        since=moment(queue["paused_at"]),
        evidence=[f"by {by['acted_as']} {by['actor'] or by['login']} at {clock(moment(by['at']))}"] if by else [],
    )  # fmt: skip


def _no_worker(f: Facts) -> Cause | None:
    workers = f["workers"]
    # Without heartbeats a paused or an idle queue looks the same as one without workers.
    silent = f.alive is None and f.overdue > _OVERDUE_SECONDS and not f["queue"]["paused_at"]
    if f.state != "available" or not (f.alive is False or silent):
        return None
    last = workers.get("last_seen_at") or workers["last_claim_at"]
    return Cause(
        "no_worker", "our code", "No worker takes jobs.", "Start one, or see in its log why it ended.",
        how="It waits until a worker runs.", command="sluice worker", since=moment(last) if last else None,
        evidence=[f"last sign of life: {clock(moment(last)) if last else 'none within a day'}",
                  f"{'fresh heartbeats' if workers['heartbeats'] else 'live leases'}: 0"],
    )  # fmt: skip


def _document_busy(f: Facts) -> Cause | None:
    beside = f["beside"]
    if f.state != "available" or beside is None:
        return None
    return Cause(
        "document_busy", "our code", f"Job {beside['job_id']} for an older generation of the same document still runs.",
        "Nothing: it stops at its next step.", heals=True, how="One job of a document runs at a time.",
        command=f"sluice jobs explain {beside['job_id']}", since=moment(beside["started_at"]),
        evidence=[f"stage {beside['stage']}"],
    )  # fmt: skip


def _tenant_cap(f: Facts) -> Cause | None:
    tenant = f["tenant"]
    if f.state != "available" or f.asleep or tenant["running"] < f.cap:
        return None
    dead = [holder for holder in tenant["holders"] if holder["expired"]]
    held = [
        f"job {h['job_id']} in stage {h['stage']}" + (", its lease ran out" if h["expired"] else "")
        for h in tenant["holders"]
    ]
    quota = tenant["quota_running"] is not None and tenant["quota_running"] == f.cap
    return Cause(
        "tenant_cap", "our code", f"Its tenant runs {counted(tenant['running'], 'job')}, as many as it may at once.",
        "Nothing, or raise the quota of running jobs." if quota else "Nothing, or raise SLUICE_TENANT_CAP.",
        heals=f.alive is not False, how="It starts when one of them has ended.", since=f.due,
        command=f"sluice jobs explain {dead[0]['job_id']}" if dead else None,
        evidence=[*held[:8], f"cap {f.cap}, {counted(tenant['jobs_ahead'], 'job')} of its own ahead"],
    )  # fmt: skip


def _rescued(f: Facts) -> Cause | None:
    if f.state != "available" or f.code != "lease_expired":
        return None
    assert f.job is not None
    return Cause(
        "rescued", "our code",
        f"A worker died or went silent while it held it, {counted(f.job['rescues'], 'time')} without progress.",
        "Nothing; at the third time it is given up, so look at the workers' log if it stays so.", heals=True,
        how="It is claimed by itself and begins when its worker's other jobs have ended.",
        command=f"sluice jobs watch {f.id}", since=since_first(f), evidence=of_failures(f),
    )  # fmt: skip


def _behind_others(f: Facts) -> Cause | None:
    tenant = f["tenant"]
    if f.state != "available" or f.asleep:
        return None
    own, others = tenant["jobs_ahead"], tenant["tenants_ahead"]
    says = "It is due and next in its tenant's line: a worker takes it with its next claim."
    if own or others:
        says = f"It waits its turn behind {counted(own, 'job')} of its tenant and {counted(others, 'other tenant')}."
    ways = f["workers"].get("ways") or {}
    return Cause(
        "behind_others" if own or others else "due", "our code", says,
        "Nothing; if the oldest age rises, run more workers or raise SLUICE_SLOTS.", heals=True,
        how="Tenants take turns; within one, priority goes before age.", command="sluice queue status", since=f.due,
        evidence=[f"due for {span(max(0.0, f.overdue))}",
                  *(f"{counted(count, 'worker')} woken by {way}" for way, count in sorted(ways.items()))],
    )  # fmt: skip


HELD: tuple[Rule, ...] = (
    _stale_lease, _running, _parse_remote, _parse_elsewhere, _budget, _misconfigured, _rate_limit, _unavailable,
    _backoff, _asleep, _paused, _no_worker, _document_busy, _tenant_cap, _rescued, _behind_others,
)  # fmt: skip

"""Rules for jobs that have ended, and for documents without a job."""

from __future__ import annotations

import shlex
from datetime import timedelta

from worker.operate.explain.cause import Cause, Rule, of_failures, of_fault, of_object
from worker.operate.explain.codes import code_of
from worker.operate.explain.facts import Facts
from worker.operate.explain.timeline import waits, why_words
from worker.operate.words import clock, moment, span


def _no_job(f: Facts) -> Cause | None:
    if f.job is not None or f.document is None:
        return None
    if f.document["state"] in ("pending", "processing"):
        return Cause(
            "no_job", "our code", "The document waits, but it has no job.", "Nothing: reconcile makes one.",
            heals=True, at=f.now + timedelta(minutes=5), how="The workers look for such documents every five minutes.",
            command="sluice reconcile", since=moment(f.document["updated_at"]), evidence=of_object(f),
        )  # fmt: skip
    return Cause(
        "history_pruned", "our code", f"The document is {f.document['state']}; its job was pruned with its history.",
        "Nothing. How long jobs are kept is SLUICE_KEEP_JOBS_DAYS.", heals=None,
    )  # fmt: skip


def _no_document(f: Facts) -> Cause | None:
    if f.job is not None or f.document is not None:
        return None
    found = f["object"]
    since = moment(found["created_at"]) if found["created_at"] else None
    if not found["watched"]:
        return Cause(
            "bucket_not_watched", "our code", f"Bucket {found['bucket_id']} is not watched, so its files are not read.",
            "Watch it, and take in what is there.", how="It stays so until the bucket is watched.", since=since,
            command=f"sluice backfill {shlex.quote(found['bucket_id'])} --watch", evidence=of_object(f),
        )  # fmt: skip
    if found["ignored"]:
        return Cause(
            "no_tenant_folder", "storage", "The file lies in no tenant's folder, so it is nobody's and is not read.",
            "Let it be moved or uploaded to a name that begins with the id of a user or an organisation.",
            how="It stays so until it is moved.", since=since, evidence=of_object(f),
        )  # fmt: skip
    return Cause(
        "upload_missed", "database", "The file is in Storage, and no document was made of it.",
        "Nothing: reconcile takes it in. If it stays so, see ingest.trigger_failures.", heals=True,
        at=f.now + timedelta(minutes=5), how="The workers compare objects and documents every five minutes.",
        command="sluice reconcile", since=since, evidence=of_object(f),
    )  # fmt: skip


def _superseded(f: Facts) -> Cause | None:
    if f.job is None or f.document is None or f.state == "completed" or f.job["generation"] >= f.document["generation"]:
        return None
    newest = f["newest"]
    return Cause(
        "superseded", "storage",
        f"A newer upload took its place: this job is for generation {f.job['generation']}, the file has "
        f"{f.document['generation']}.",
        "Nothing: look at the newer job.", heals=None, command=f"sluice jobs explain {newest['job_id']}",
        since=moment(newest["created_at"]),
        evidence=[f"job {newest['job_id']} for generation {newest['generation']} is {newest['state']}"],
    )  # fmt: skip


def _cancelled(f: Facts) -> Cause | None:
    if f.job is None or f.state != "cancelled" or f.code != "cancelled":
        return None
    acts = [act for act in f["acts"] if act["action"].startswith("cancel")]
    who = f"{acts[-1]['acted_as']} {acts[-1]['actor'] or acts[-1]['login']}" if acts else "somebody, in bulk"
    return Cause(
        "cancelled", "our code", f"It was cancelled by hand: {who}.", "Retry it if that was a mistake.",
        command=f"sluice jobs retry {f.id}", since=moment(f.job["finalized_at"]),
        evidence=[f"{act['action']} at {clock(moment(act['at']))}" for act in acts[-1:]],
    )  # fmt: skip


def _deleted(f: Facts) -> Cause | None:
    gone = f.job is not None and f.state != "completed" and (f.document is None or not f["object"]["there"])
    if not gone and f.code not in ("object_deleted", "document_deleted"):
        return None
    return Cause(
        "object_deleted", "storage", "The file was deleted in Storage before it was published.",
        "Nothing, or upload the file again if it was not meant to go.", heals=None,
        evidence=[*of_object(f), f"document: {'gone' if f.document is None else f.document['state']}"],
    )  # fmt: skip


def _published(f: Facts) -> Cause | None:
    if f.job is None or f.state != "completed":
        return None
    spent = waits(f)
    took = (moment(f.job["finalized_at"]) - moment(f.job["created_at"])).total_seconds()
    most = f" Most of it went to {why_words(spent[0].why)}: {span(spent[0].seconds)}." if spent else ""
    return Cause(
        "published", spent[0].layer if spent else "our code",
        f"It was published {span(took)} after the upload, in attempt {f.job['attempt']}.{most}",
        "Nothing.", heals=None, since=moment(f.job["finalized_at"]),
        evidence=[f"{wait.layer}, {why_words(wait.why)}: {span(wait.seconds)}" for wait in spent[:5]],
    )  # fmt: skip


def _over_quota(f: Facts) -> Cause | None:
    if f.state != "discarded" or f.code != "quota_exceeded":
        return None
    assert f.job is not None
    quota = f["quota"]
    over = str(quota["over"] or "") if quota else ""
    limit = (
        "pages-month"
        if "pages were read" in over
        else "files"
        if over.endswith("ask the operator for more.")
        else "bytes"
    )
    used = [
        f"{name.replace('_', ' a ')}: {quota[used]} of {quota[name]}"
        for name, used in (("bytes", "bytes_used"), ("files", "files_used"), ("pages_month", "pages_used"))
        if quota and quota[name] is not None
    ]
    return Cause(
        "over_quota", "our code", f"It is beyond its tenant's quota: {f.job['error_message'] or 'there is no room'}",
        "Let the owner delete files, or raise the quota.", heals=True,
        at=moment(quota["next_month"]) if limit == "pages-month" else None,
        how="Looked at every minute: it comes back when files are deleted, the quota rises or a month begins.",
        command=f"sluice quota set {f.job['tenant_id']} --{limit} N", evidence=used,
    )  # fmt: skip


def _poison(f: Facts) -> Cause | None:
    if f.state != "discarded" or f.code != "worker_lost":
        return None
    assert f.job is not None
    lost = [failure for failure in f.failures if failure.event == "rescue"]
    return Cause(
        "poison", "our code",
        f"Workers died or went silent {f.job['rescues']} times while they held it, last in stage {f.job['stage']}: "
        "the file may be what kills them.",
        "Look for exits and out-of-memory kills of the workers at these times; retry only when that is mended.",
        command=f"sluice jobs retry {f.id}", since=lost[0].at if lost else None,
        evidence=[f"lost at {clock(failure.at)}" for failure in lost[:5]],
    )  # fmt: skip


def _refused(f: Facts) -> Cause | None:
    if f.state != "discarded" or f.kind != "rejected":
        return None
    assert f.job is not None
    assert f.code is not None
    name = (
        "encrypted" if f.code.endswith("_encrypted")
        else "provider_refuses_text" if f.code.startswith("embedding_")
        else "unreadable_file"
    )  # fmt: skip
    return Cause(
        name, f.layer(f.code), f"{f.job['error_message'] or f.code}", "Tell the owner: only another file helps.",
        since=moment(f.job["finalized_at"]), evidence=[f"code {f.code}", *of_fault(f)],
    )  # fmt: skip


def _gave_up(f: Facts) -> Cause | None:
    if f.state != "discarded" or f.job is None or f.kind in ("rejected", "quota", "rescued"):
        return None
    first = f.failures[0] if f.failures else None
    code = first.code if first else f.code
    symptom = f" The last symptom was {f.code}." if first and first.code != f.code else ""
    waited = f.kind in ("unavailable", "throttled", "waiting")
    return Cause(
        "gave_up_waiting" if waited else "attempts_used_up", first.layer if first else f.layer(f.code),
        f"It waited a day in vain: {code}.{symptom}" if waited
        else f"All {f.job['attempt']} attempts failed, first with {code}.{symptom}",
        f"{code_of(code).remedy or 'See that the cause is gone'}; then retry it.".replace(".;", ";"),
        command=f"sluice jobs retry {f.id}", since=first.at if first else None,
        evidence=[*of_failures(f), *of_fault(f)],
    )  # fmt: skip


def other_end(f: Facts) -> Cause:
    """Say at least how it ended, where no rule knows more."""
    return Cause("ended", f.layer(f.code), f"It is {f.state}, with {f.code or 'no code'}.", "Nothing.", heals=None)


ENDED: tuple[Rule, ...] = (
    _no_document, _no_job, _superseded, _cancelled, _deleted, _published, _over_quota, _poison, _refused, _gave_up,
)  # fmt: skip

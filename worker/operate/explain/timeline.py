"""The timeline of a job: what happened, in which layer, and where its time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.operate.explain.codes import LAYERS, Layer
from worker.operate.explain.facts import Facts
from worker.operate.words import clock, moment, span

STAGE_LAYERS: Mapping[str, Layer] = {
    "fetch": "storage", "parse": "parser", "chunk": "our code", "embed": "embedder", "publish": "database",
}  # fmt: skip


_PROBE_SECONDS = 25.0
"""An older probe says nothing."""

_WHY: Mapping[str, str] = {
    "turn": "waiting for its turn", "lost worker": "a worker that was lost",
    "ended": "being ended until it was retried",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the timeline."""

    at: datetime
    layer: Layer
    event: str
    says: str
    seconds: float | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A span of the job's life, by what it went to: a stage's work, its turn in the queue, or a code."""

    layer: Layer
    why: str
    seconds: float


def entries(facts: Facts) -> Sequence[Entry]:
    """Return what happened in order: the job's events, and what was noted beside them and bears on it."""
    found = [_entry(facts, event) for event in facts.events]
    for act in facts["acts"]:
        who = f"{act['acted_as']} {act['actor'] or act['login']}"
        found.append(Entry(moment(act["at"]), "our code", "act", f"{who}: {act['action']}"))
    queue = facts["queue"]
    if queue and queue["paused_at"]:
        found.append(Entry(moment(queue["paused_at"]), "our code", "pause", "The queue was paused."))
    lease = facts["lease"]
    if lease and lease["expired"]:
        says = f"The lease of worker {lease['worker_id']} ran out."
        found.append(Entry(moment(lease["expires_at"]), "our code", "lease", says))
    parse = facts["parse"]
    if parse and parse["submitted_at"]:
        says = f"{parse['parser']} took the file."
        found.append(Entry(moment(parse["submitted_at"]), "parser", "parse", says))
    for alert in facts["alerts"]:
        if facts.code and alert["subject"] == facts.code:
            says = f"Alert {alert['kind']}/{alert['subject']} was raised."
            found.append(Entry(moment(alert["raised_at"]), facts.layer(facts.code), "alert", says))
    return sorted(found, key=lambda entry: entry.at)


def waits(facts: Facts) -> Sequence[Wait]:
    """Return where the time went from the first event to the end, or to now, the longest first."""
    spent: dict[tuple[Layer, str], float] = {}

    def add(layer: Layer, why: str, seconds: float) -> None:
        if seconds > 0:
            spent[layer, why] = spent.get((layer, why), 0.0) + seconds

    before: tuple[str, str | None, datetime] | None = None
    staged = 0.0
    for event in facts.events:
        at = moment(event["at"])
        name, code = event["event"], event["code"]
        if name == "stage":
            seconds = event["seconds"] or 0.0
            staged += seconds
            add(STAGE_LAYERS.get(event["stage"], "our code"), event["stage"], seconds)
            continue
        if before is not None:
            _between(facts, add, before, (name, code, at), event, staged)
        staged, before = 0.0, (name, code, at)
    if before is not None and facts.state in ("available", "running"):
        _between(facts, add, before, ("now", facts.code, facts.now), {"seconds": None, "stage": None}, staged)
    return sorted((Wait(*key, seconds) for key, seconds in spent.items()), key=lambda wait: -wait.seconds)


def why_words(why: str) -> str:
    """Say what a wait was for."""
    return _WHY.get(why) or (f"stage {why}" if why in STAGE_LAYERS else f"waiting for {why}")


def _between(
    facts: Facts, add: Any, before: tuple[str, str | None, datetime], after: tuple[str, str | None, datetime],
    event: Mapping[str, Any], staged: float,
) -> None:  # fmt: skip
    """Share out the time between two transitions."""
    seconds = (after[2] - before[2]).total_seconds()
    if before[0] == "claim":
        rest = seconds - staged
        if after[0] == "complete":
            add("database", "publish", rest)
        elif after[0] == "rescue":
            add("our code", "lost worker", rest)
        elif after[0] == "now":
            stage = facts.job["stage"] if facts.job else None
            add(STAGE_LAYERS.get(stage or "", "our code"), stage or "turn", rest)
        else:
            add(facts.layer(after[1]) if after[1] else "our code", after[1] or after[0], rest)
    elif before[0] in ("cancel", "discard"):
        add("our code", "ended", seconds)
    else:
        # What a claim took is how long the job had been due; the rest it slept for its code.
        queued = min(seconds, event["seconds"]) if after[0] == "claim" and event["seconds"] is not None else 0.0
        if after[0] == "now":
            queued = min(seconds, max(0.0, facts.overdue))
        if before[1] is None or before[0] in ("enqueue", "release"):
            queued = seconds
        add("our code", "turn", queued)
        add(facts.layer(before[1]), before[1] or "turn", seconds - queued)


def _entry(facts: Facts, event: Mapping[str, Any]) -> Entry:
    at, name, code, seconds = moment(event["at"]), event["event"], event["code"], event["seconds"]
    layer: Layer = facts.layer(code) if code else "our code"
    match name:
        case "enqueue":
            says = "The file arrived and its job was made."
        case "claim":
            says = f"A worker took it, attempt {event['attempt']}, {span(seconds or 0)} after it was due."
        case "stage":
            layer = STAGE_LAYERS.get(event["stage"], "our code")
            says = f"Stage {event['stage']} was left."
        case "complete":
            layer, says = "database", "Published."
        case "retry" if (event["detail"] or {}).get("by"):
            says = f"Brought back by hand or by room in the quota ({event['detail']['by']})."
        case "retry":
            says = f"Attempt {event['attempt']} failed with {code}; it is tried again."
        case "snooze":
            says = f"It waits, uncharged: {code}."
        case "release":
            says = f"Handed back at once, uncharged: {code}."
        case "rescue":
            says = "The worker's lease ran out without an answer; the job was taken back."
        case "discard":
            says = f"Given up: {code}."
        case _:
            says = f"Cancelled: {code}."
    return Entry(at, layer, name, says, seconds, code)


def by_layer(facts: Facts, cause: Layer, others: Sequence[Layer]) -> list[dict[str, Any]]:
    """Say for each layer whether the cause is there, whether it gave trouble, and what it cost."""
    spent = waits(facts)
    troubled = {failure.layer for failure in facts.failures}
    worked = {STAGE_LAYERS.get(event["stage"]) for event in facts.events if event["event"] == "stage"}
    told = []
    for layer in LAYERS:
        evidence = [f"{why_words(wait.why)}: {span(wait.seconds)}" for wait in spent if wait.layer == layer]
        failures = [failure for failure in facts.failures if failure.layer == layer]
        evidence += [f"{failure.code} at {clock(failure.at)}" for failure in failures[:3]]
        evidence += [
            f"probe of {probe['service']}: {probe['code'] or probe['status']}"
            for probe in facts["workers"].get("probes", [])
            if _PROBED.get(probe["service"]) == layer
            and (facts.now - moment(probe["checked_at"])).total_seconds() < _PROBE_SECONDS
        ]
        if layer == "database":
            evidence.append("answered this question")
        elif layer in ("network", "auth") and "storage" in worked:
            evidence.append("Storage was reached and took the key")
        verdict = (
            "cause" if layer == cause
            else "trouble" if layer in others or layer in troubled
            else "ok" if layer == "database" or layer in worked or evidence
            else "not seen"
        )  # fmt: skip
        seconds = round(sum(wait.seconds for wait in spent if wait.layer == layer), 3)
        told.append({"layer": layer, "verdict": verdict, "seconds": seconds, "evidence": evidence})
    return told


_PROBED: Mapping[str, Layer] = {
    "database": "database", "supabase_auth": "auth", "storage": "storage", "realtime": "network",
    "llamaparse": "parser", "openai": "embedder", "worker": "our code",
}  # fmt: skip

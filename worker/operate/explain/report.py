"""Why a job is where it is: rules over what the database gathered, and the report that they make.

Each rule looks at the facts and answers with a cause or with nothing. They are asked in the order of RULES and the
first answer is the cause: a job that sleeps for a wrong key is explained by the key, though its queue is paused too.
What else holds it stands under `also`, and it heals by itself only when all of that does. Nothing here asks the
database or the clock, so every rule is tested on facts that the real queue made.
"""

from __future__ import annotations

from typing import Any

from worker.operate.explain.cause import Cause, Rule
from worker.operate.explain.ended import ENDED, other_end
from worker.operate.explain.facts import Facts
from worker.operate.explain.held import HELD
from worker.operate.explain.timeline import by_layer, entries, waits, why_words

SCHEMA = 1
RULES: tuple[Rule, ...] = (*ENDED, *HELD)

_VERDICTS = {"completed": "done", "cancelled": "cancelled", "discarded": "failed", "running": "running"}
_LEAST = ("due", "behind_others", "scheduled")
"""Rules that say nothing where another has spoken."""


def causes(facts: Facts) -> list[Cause]:
    """Return the cause and what else holds the job, at least one."""
    found = [cause for rule in RULES if (cause := rule(facts)) is not None]
    return (found[:1] + [cause for cause in found[1:] if cause.rule not in _LEAST]) or [other_end(facts)]


def explain(facts: Facts) -> dict[str, Any]:
    """Return the report as JSON has it; its keys are a promise, and SCHEMA grows when one changes its meaning."""
    cause, *also = causes(facts)
    spent = waits(facts)
    job, document = facts.job, facts.document
    return {
        "schema": SCHEMA,
        "at": facts["now"],
        "verdict": _verdict(facts),
        "job": None if job is None else {name: job[name] for name in _JOB},
        "document": None if document is None else {name: document[name] for name in _DOCUMENT},
        "object": {name: facts["object"][name] for name in _OBJECT},
        "cause": _told(cause),
        "also": [_told(other) for other in also],
        "heals": _heals(cause, also),
        "remedy": {"says": cause.remedy, "command": cause.command},
        "longest_wait": {
            "layer": spent[0].layer, "why": why_words(spent[0].why), "seconds": round(spent[0].seconds, 3),
        } if spent else None,
        "usage": facts["usage"],
        "layers": by_layer(facts, cause.layer, [other.layer for other in also]),
        "timeline": [
            {
                "at": entry.at.isoformat(), "layer": entry.layer, "event": entry.event, "says": entry.says,
                "seconds": entry.seconds, "code": entry.code,
            }
            for entry in entries(facts)
        ],
    }  # fmt: skip


_JOB = (
    "id", "document_id", "generation", "tenant_id", "state", "stage", "progress", "attempt", "max_attempts", "rescues",
    "snoozes", "error_code", "error_message", "created_at", "scheduled_at", "started_at", "finalized_at",
)  # fmt: skip
_DOCUMENT = (
    "id", "name", "bucket_id", "state", "generation", "published_generation", "size", "mime_type", "page_count",
    "chunk_count",
)  # fmt: skip
_OBJECT = ("there", "id", "bucket_id", "name", "created_at")


def _verdict(facts: Facts) -> str:
    if facts.job is not None:
        return _VERDICTS.get(facts.job["state"], "waiting")
    return "no document" if facts.document is None else str(facts.document["state"])


def _told(cause: Cause) -> dict[str, Any]:
    return {
        "rule": cause.rule, "layer": cause.layer, "says": cause.says,
        "since": cause.since and cause.since.isoformat(), "evidence": list(cause.evidence),
        "remedy": cause.remedy, "command": cause.command,
    }  # fmt: skip


def _heals(cause: Cause, also: list[Cause]) -> dict[str, Any]:
    """Say whether it heals by itself and when: what does not heal decides, else the cause."""
    if cause.heals is None:
        return {"by_itself": None, "at": None, "how": "There is nothing to heal."}
    stuck = next((one for one in (cause, *also) if one.heals is False), None)
    decides = stuck or cause
    at = decides.at and decides.at.isoformat()
    return {"by_itself": stuck is None, "at": at, "how": decides.how or "It stays so."}

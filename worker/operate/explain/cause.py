"""A cause: what one rule found out about a job, and the pieces of evidence that rules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from worker.operate.explain.codes import Layer
from worker.operate.explain.facts import Facts
from worker.operate.words import clock, counted, moment


@dataclass(frozen=True, slots=True)
class Cause:
    """What a rule found; `remedy` is one sentence for an operator.

    `heals` is None where there is nothing to heal, `at` when it heals by itself or is looked at next.
    """

    rule: str
    layer: Layer
    says: str
    remedy: str
    heals: bool | None = False
    at: datetime | None = None
    how: str = ""
    command: str | None = None
    since: datetime | None = None
    evidence: Sequence[str] = field(default=())


Rule = Callable[[Facts], Cause | None]


def of_object(f: Facts) -> list[str]:
    """Say whether the object is there, and what the trigger noted of it."""
    found = ["the object is in Storage" if f["object"]["there"] else "the object is not in Storage"]
    if f["object"]["tombstone"]:
        found.append("its deletion is still to be carried out (tombstone)")
    if f["object"]["trigger_failure"]:
        found.append(f"the object trigger failed with {f['object']['trigger_failure']}")
    return found


def of_fault(f: Facts) -> list[str]:
    """Name the class or the HTTP status that was raised last; never its text."""
    details = f["details"]
    return [f"raised: {details['fault']}"] if details and details["fault"] else []


def of_alert(alert: Mapping[str, Any] | None) -> list[str]:
    """Say since when an alert is open and how often it was noticed."""
    if alert is None:
        return []
    since = clock(moment(alert["raised_at"]))
    return [f"alert {alert['kind']}/{alert['subject']} since {since}, noticed {counted(alert['count'], 'time')}"]


def of_failures(f: Facts) -> list[str]:
    """List what set the job back, the first cause first."""
    return [f"{failure.event} {failure.code} at {clock(failure.at)}" for failure in f.failures[:6]]


def since_first(f: Facts) -> datetime | None:
    """Return when the failures began that the job has not overcome."""
    return f.failures[0].at if f.failures else None
